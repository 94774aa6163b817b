# `make` or `make help` lists the targets. PYTHON chooses the interpreter, PIP_ARGS goes to pip (see the README: CPU or CUDA).
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
LAB_ARGS ?=
SWEEP_ARGS ?=
MUTATE_ARGS ?=
BENCH_ARGS ?= --output results/bench.json
TORCH ?=
VERSIONS_ARGS ?=
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
PAGES := _build/stored/_build/html
# Threads that wait must not spin: on a busy machine they would stall the ones that work. (In small letters: libgomp reads
# it in the user's language, and a Turkish "PASSIVE" has no i.)
export OMP_WAIT_POLICY := passive
# Nothing is reported to anybody: ONNX Runtime would, from its import on.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help book pdf test stress pages lab notebooks sweep bench mutate versions lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(STAMP) ## set up, run every chapter, render the book, print where it is
	@# A failed build forgets the pages it read: a second one would otherwise find nothing to complain about.
	@$(BIN)/jupyter-book build . -n -W --keep-going || { \
		mkdir -p _build; test "$$(df -Pk _build | awk 'END { print $$4 }')" -gt 1024 \
			|| echo "The disk of $(CURDIR)/_build is full: make room, and run make book again." >&2; \
		rm -rf _build/.doctrees; exit 1; }
	@test -s _build/html/book/index.html || { echo "The build left no page behind." >&2; exit 1; }
	@echo "The book is at $(CURDIR)/_build/html/index.html"

pdf: book ## the book as one PDF, printed from its pages by Chromium; print where it is
	@$(BIN)/python book/pdf.py

test: lint pages ## lint, types, unit tests, every notebook against its stored outputs, the pages in a browser
	@# The stored outputs are a CPU's: on a GPU, floats and kernels differ.
	@CUDA_VISIBLE_DEVICES= PAGES=$(PAGES) $(BIN)/python -m pytest tests notebooks -m "not stress" \
		--numprocesses=2 --dist=loadfile --nbval --nbval-cell-timeout=300 --cov=lstm_utils --cov-branch --cov-report=term $(PYTEST_ARGS)

stress: book ## what takes too long for every run: the pages of `make book`, the PDF, every chapter with another seed
	@$(BIN)/python -m pytest tests/test_book.py $(PYTEST_ARGS)
	@CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest tests -m stress $(PYTEST_ARGS)

pages: $(STAMP) ## render the book from the stored outputs, which make test holds against a fresh run
	@STORED_OUTPUTS=1 $(BIN)/jupyter-book build . --path-output _build/stored -n -W --keep-going \
		|| { rm -rf _build/stored; exit 1; }

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lab: $(STAMP) ## open the notebooks in JupyterLab
	@# JupyterLab would ask other hosts for news and for newer versions of itself.
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(LAB_ARGS)

notebooks: $(STAMP) ## run every notebook in place and keep its outputs
	@mkdir -p _build/notebooks
	@for notebook in $(NOTEBOOKS); do \
		echo "$$notebook"; run=_build/$$notebook; \
		$(BIN)/papermill --cwd notebooks --kernel python3 $$notebook $$run && \
		$(BIN)/jupyter nbconvert --log-level=ERROR --to notebook --inplace --coalesce-streams $$run && \
		$(BIN)/nbstripout --keep-output --keep-count --keep-id \
			--extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version" $$run && \
		mv $$run $$notebook || exit 1; \
	done

sweep: $(STAMP) ## run the benchmark chapter over devices, threads and sizes; write this machine's report
	@$(BIN)/python -m lstm_utils.sweep $(SWEEP_ARGS)

bench: $(STAMP) ## what lstm_utils costs against what one would do instead; writes results/bench.json
	@$(BIN)/python -m lstm_utils.bench $(BENCH_ARGS)

mutate: $(STAMP) ## seed faults in the chapters, or in the modules that MUTATE_ARGS names; list what nobody noticed
	@# mutmut is not in the lock, since nothing else needs it, and not in .venv, which holds the lock alone. What it needs
	@# beside these is in the lock, but for textual, which only its browser of results imports.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target _build/tools \
		mutmut==3.8.1 libcst==1.9.0 rich==15.0.0 setproctitle==1.3.8
	@PYTHONPATH=$(CURDIR)/_build/tools $(BIN)/python tests/mutate.py $(MUTATE_ARGS)

# In an environment of its own for each torch and Python, with everything else as pinned.
OTHER = _build/versions/$(TORCH)-$(notdir $(PYTHON))
versions: ## what differs from the record under TORCH=2.14.1, PYTHON=...; writes a report to results/versions
	@test -n "$(TORCH)" || { echo "Say which torch: make versions TORCH=2.14.1" >&2; exit 1; }
	@mkdir -p _build/versions
	@sed 's/^torch==.*/torch==$(TORCH)/' requirements.lock > $(OTHER).lock
	@$(MAKE) --no-print-directory VENV=$(OTHER) LOCK=$(OTHER).lock $(OTHER)/.installed
	@$(OTHER)/bin/python tests/versions.py $(VERSIONS_ARGS)

clean: ## delete what was built (not the environment)
	rm -rf _build .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment is remade when the pinned set or the package's metadata changes.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; install Python 3.11 or newer, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old; this needs 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks the venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes, and a large download where torch is not cached)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $(LOCK) 2>$(VENV)/pip.log \
		|| { grep -m1 -iE 'error|could not' $(VENV)/pip.log >&2 || true; echo "The packages could not be installed; is there a network? Details: $(VENV)/pip.log" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . 2>>$(VENV)/pip.log \
		|| { echo "lstm_utils could not be installed. Details: $(VENV)/pip.log" >&2; exit 1; }
	@touch $@
