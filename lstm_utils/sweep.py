"""Run the deployment benchmark over devices, threads and sizes, and write one report a machine.

A finished cell of the grid is kept: after a kill or a failure, the same command runs only what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lstm_utils.files import write_whole
from lstm_utils.machines import Cell, Machine, machines, run_cell
from lstm_utils.report import as_json, check_record, machine_name, merge_records, save_report


def grid(
    found: Mapping[str, Mapping[str, Any]], threads: Sequence[int], hidden_sizes: Sequence[int], quick: bool = False
) -> list[Cell]:
    """Every cell once, by device, threads and size.

    Args:
        found: the hardware of one machine by device.
        threads: numbers of CPU threads, 0 for all cores. A GPU is fed by one of them, whatever is asked for.
        hidden_sizes: of the LSTM.
        quick: a shortened run.

    Raises:
        ValueError: more threads than the machine has cores.
    """
    cells = []
    for device, machine in found.items():
        for wanted in threads:
            number = (wanted or machine["cores"]) if device == "cpu" else 1
            if number > machine["cores"]:
                raise ValueError(f"--threads {wanted} is more than the {machine['cores']} cores of this machine")
            cells += [Cell(device, number, size, quick) for size in hidden_sizes]
    return list(dict.fromkeys(cells))


def run_grid(
    machine: Machine, cells: Sequence[Cell], notebook: str, folder: Path, disturbed: bool = False
) -> list[dict[str, Any]]:
    """Run the cells that are not finished yet, keep what they measured in the folder, and print how each went.

    Args:
        machine: where they run.
        cells: what runs.
        notebook: the text of the notebook.
        folder: keeps a record and an executed notebook for each cell.
        disturbed: whether cells run side by side; what they measured then is not kept for a run one by one.

    Returns:
        the records of the cells that are finished now.
    """
    import joblib

    folder.mkdir(parents=True, exist_ok=True)
    keys = {cell: _key(machine.description, cell, notebook, disturbed) for cell in cells}
    records = {cell: _finished(_path(folder, cell), keys[cell]) for cell in cells}
    for cell in cells:
        if records[cell]:
            print(f"{cell}: kept from an earlier run", flush=True)
    todo = [cell for cell in cells if not records[cell]]
    with joblib.parallel_config(**machine.joblib):
        parallel = joblib.Parallel(
            n_jobs=machine.jobs, pre_dispatch=machine.jobs, batch_size=1, return_as="generator_unordered"
        )
        for run in parallel(joblib.delayed(run_cell)(notebook, cell) for cell in todo):
            path = _path(folder, run.cell)
            executed = path.with_suffix(".ipynb")
            write_whole(executed, run.notebook)
            if error := run.error or _misfit(run.record, machine.description["hardware"][run.cell.device], run.cell):
                print(f"{run.cell}: FAILED: {error}; see {executed}", file=sys.stderr, flush=True)
                continue
            write_whole(path, as_json({"key": keys[run.cell], "record": run.record}))
            records[run.cell] = run.record
            print(f"{run.cell}: done in {run.seconds:.0f} s", flush=True)
    return [record for record in records.values() if record]


def _path(folder: Path, cell: Cell) -> Path:
    return folder / (str(cell).replace(",", "").replace(" ", "-").replace(":", "-") + ".json")


def _key(description: Mapping[str, Any], cell: Cell, notebook: str, disturbed: bool) -> str:
    """What a record belongs to: a change in any of this makes it outdated."""
    source = [(part["cell_type"], "".join(part["source"])) for part in json.loads(notebook)["cells"]]  # no outputs
    there = [description["helpers"], description["versions"], description["hardware"][cell.device]]
    return hashlib.sha256(json.dumps([source, there, asdict(cell), disturbed]).encode()).hexdigest()


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    """The record in the file; None where there is no sound one that belongs to the key."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return check_record(kept["record"], path.name) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _misfit(record: object, machine: Mapping[str, Any], cell: Cell) -> str:
    """Why the record is not one of this cell; empty where it is."""
    try:
        checked = check_record(record, "its record")
    except ValueError as error:
        return str(error)
    for part, expected in (("hardware", {**machine, "threads": cell.threads}), ("settings", asdict(cell))):
        for field, value in expected.items():
            if checked[part][field] != value:
                return f"its record has {part}.{field} {checked[part][field]!r}, and the cell was {value!r}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    trial = options.quick or options.jobs > 1
    results = options.results or (options.folder if trial else Path("results/hardware"))
    complete = True
    try:
        if not options.notebook.is_file():
            raise ValueError(f"no notebook {str(options.notebook)!r}; run this at the root of the repository")
        notebook = options.notebook.read_text(encoding="utf-8")
        with machines(options.device, options.backend, options.scheduler, options.jobs) as found:
            grids = [
                grid(m.description["hardware"], options.threads, options.hidden_sizes, options.quick) for m in found
            ]
            if options.jobs > 1:
                print("Cells that run side by side disturb each other's timings: for trying out, not for results.")
            for machine, cells in zip(found, grids, strict=True):
                name = machine_name(machine.description["hardware"][cells[0].device])
                print(f"{name}: {len(cells)} cell{'' if len(cells) == 1 else 's'}", flush=True)
                records = run_grid(machine, cells, notebook, options.folder / name, options.jobs > 1)
                if len(records) < len(cells):
                    complete = False
                    continue
                results.mkdir(parents=True, exist_ok=True)
                print(f"The report: {save_report(results, merge_records(records))}")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What is finished is kept; the same command runs the rest.", file=sys.stderr)
        return 130
    if not complete:
        print("Cells failed: no report. Finished ones are kept; the same command runs the rest.", file=sys.stderr)
    return 0 if complete else 1


def _at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lstm_utils.sweep",
        description=__doc__,
        epilog="Exit status: 0 with a report, 1 where a cell failed, 2 where nothing could be run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size, threads = _at_least(1), _at_least(0)
    add = parser.add_argument
    add("--device", nargs="+", default=["auto"], help="auto (CUDA, then MPS, then the CPU), cpu, cuda, mps; or several")
    add("--threads", nargs="+", type=threads, default=[1, 0], metavar="N", help="0 for all cores (default: 1 0)")
    add("--hidden-sizes", nargs="+", type=size, default=[64, 256, 1024], metavar="H", help="default: 64 256 1024")
    add("--quick", action="store_true", help="a short run, to try it out: its report stays in the folder")
    add("--backend", choices=["loky", "dask"], default="loky", help="loky: this machine (default); dask: a cluster")
    add("--scheduler", metavar="ADDRESS", help="of the Dask scheduler, such as tcp://10.0.0.1:8786")
    jobs = (
        "cells at once on a machine (default: 1); side by side they disturb each other: the report stays in the folder"
    )
    add("--jobs", type=size, default=1, metavar="N", help=jobs)
    add("--folder", type=Path, default=Path("_build/sweep"), help="keeps what is finished (default: %(default)s)")
    add("--results", type=Path, metavar="FOLDER", help="for the report (default: results/hardware)")
    notebook = Path("notebooks/14_deployment_benchmark.ipynb")
    add("--notebook", type=Path, default=notebook, help="what runs (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
