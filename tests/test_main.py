import runpy
import subprocess
import sys

import pytest
import torch

import lstm_utils.__main__
from lstm_utils import LSTMSpec
from lstm_utils.__main__ import BUILDER, DTYPES, main

SIZES = ("--input-size", "100", "--hidden-size", "64")


@pytest.mark.parametrize(
    ("flags", "spec", "call"),
    [
        ((), {}, {}),
        (("--num-layers", "2"), {"num_layers": 2}, {}),
        (("--no-bias",), {"bias": False}, {}),
        (("--batch-first",), {"batch_first": True}, {}),
        (("--num-layers", "2", "--dropout", "0.25"), {"num_layers": 2, "dropout": 0.25}, {}),
        (("--bidirectional", "--proj-size", "8"), {"bidirectional": True, "proj_size": 8}, {}),
        (("--seq-len", "7", "--batch-size", "3"), {}, {"seq_len": 7, "batch_size": 3}),
        (("--batch-size", "0"), {}, {"batch_size": None}),
    ],
)
def test_describe_prints_what_the_spec_describes(flags, spec, call, capsys):
    assert main(["describe", *SIZES, *flags]) == 0
    printed = capsys.readouterr()
    assert printed.out == LSTMSpec(100, 64, **spec).describe(**call) + "\n"
    assert printed.err == ""


@pytest.mark.parametrize("name", DTYPES)
def test_memory_is_that_of_the_dtype(name, capsys):
    assert main(["describe", *SIZES, "--dtype", name]) == 0
    assert capsys.readouterr().out == LSTMSpec(100, 64).describe(dtype=getattr(torch, name)) + "\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-layers", "0"), "num_layers must be at least 1, got 0"),
        (("--dropout", "1.5"), "dropout must lie from 0 to 1, got 1.5"),
        (("--dropout", "nan"), "dropout must lie from 0 to 1, got nan"),
        (("--proj-size", "64"), "proj_size must be smaller than hidden_size (64), got 64; 0 means no projection"),
        (("--seq-len", "0"), "seq_len must be an int of at least 1, got 0"),
        (("--batch-size", "-1"), "batch_size must be an int of at least 0, got -1"),
    ],
)
def test_what_nn_lstm_refuses_ends_with_status_2_and_the_message(flags, message, capsys):
    assert main(["describe", *SIZES, *flags]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["describe"], "the following arguments are required: --input-size, --hidden-size"),
        (["describe", *SIZES, "--num-layers", "2.5"], "argument --num-layers: invalid int value: '2.5'"),
        (["describe", *SIZES, "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["draw"], "invalid choice: 'draw'"),
    ],
)
def test_a_malformed_command_line_ends_with_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            [],
            "usage: python -m lstm_utils [-h] COMMAND ... "
            "Shapes, parameters and memory of an LSTM (describe); the pitfalls that a model of yours is in (diagnose). "
            "positional arguments: COMMAND "
            "describe print shapes, the table of tensors, totals and memory "
            "diagnose look for pitfalls in a model and a batch of yours options:",
        ),
        (
            ["describe"],
            "--seq-len SEQ_LEN time steps (default: 20) "
            "--batch-size BATCH_SIZE 0 for the unbatched shapes (default: 32) "
            "--dtype {float32,float64,float16,bfloat16}",
        ),
        (
            ["diagnose"],
            "usage: python -m lstm_utils diagnose [-h] BUILDER "
            "positional arguments: BUILDER such as my_module:build_model options:",
        ),
    ],
    ids=["whole", "describe", "diagnose"],
)
def test_the_help_says_what_there_is_to_ask(capsys, command, told):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert told in " ".join(capsys.readouterr().out.split())


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "--help"])
    printed = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in printed for name in LSTMSpec.__dataclass_fields__)


def run_python(*arguments, cwd):
    """A fresh interpreter, away from the repository, so that it is the installed package that answers."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_package_runs_as_a_module(tmp_path):
    done = run_python("-m", "lstm_utils", "describe", *SIZES, "--num-layers", "2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, LSTMSpec(100, 64, 2).describe() + "\n"), done.stderr
    refused = run_python("-m", "lstm_utils", "describe", *SIZES, "--num-layers", "0", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "num_layers must be at least 1, got 0" in refused.stderr


WITHOUT_THE_BOOK = """
import sys

TOOLS = ("jupyter_book", "myst_nb", "matplotlib", "papermill", "nbval")
for tool in TOOLS:
    sys.modules[tool] = None  # importing it now raises ModuleNotFoundError
import lstm_utils
from lstm_utils.__main__ import main

main(["describe", "--input-size", "2", "--hidden-size", "3"])
for tool in TOOLS:
    try:
        __import__(tool)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{tool} was not blocked")
"""


def test_the_package_needs_none_of_the_tools_that_build_the_book(tmp_path):
    done = run_python("-c", WITHOUT_THE_BOOK, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, LSTMSpec(2, 3).describe() + "\n"), done.stderr


BUILDERS = """
import torch
from torch import nn

lengths = torch.tensor([3, 2])
x = torch.randn(2, 3, 4)
sound = nn.LSTM(4, 5, batch_first=True)


def healthy():
    return {"model": sound, "batch": x, "batch_dim": 0}


def warned():
    with torch.no_grad():
        lstm = nn.LSTM(4, 5, batch_first=True)
        for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0):
            bias[5:10] = 1
    return lstm, x


def wrong():
    return nn.LSTM(4, 5), x, lengths


def raising():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = sound

        def forward(self, x):
            raise ValueError("a mistake of my own")

    return Model(), x


def failing():
    raise ValueError("my data is missing")


def nothing():
    return None


def four():
    return 1, 2, 3, 4


def misspelt():
    return {"model": sound, "batch": x, "length": lengths}


def incomplete():
    return {"batch": x}


def empty():
    return {}


def listed():
    return [sound, x]


def misfit():
    return sound, x, [1, 2, 3, 1]


def needy(batch_size):
    return sound, x


number = 3
"""


@pytest.fixture
def builders(tmp_path, monkeypatch):
    (tmp_path / "builders_of_a_test.py").write_text(BUILDERS, encoding="utf-8")
    (tmp_path / "broken_of_a_test.py").write_text("import no_such_package", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize(
    ("name", "status", "printed"),
    [
        ("healthy", 0, "no pitfall found\n"),
        ("warned", 0, "warning P17: a forget bias written to both vectors"),
        ("wrong", 1, "error P02: batch_first forgotten\n  seen: "),
    ],
)
def test_diagnose_prints_the_findings(capsys, name, status, printed):
    assert main(["diagnose", f"builders_of_a_test:{name}"]) == status
    output = capsys.readouterr()
    assert output.out.startswith(printed)
    assert output.err == ""


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("builders_of_a_test", "expected MODULE:FUNCTION, such as my_module:build_model, got 'builders_of_a_test'"),
        (":healthy", "expected MODULE:FUNCTION"),
        (".builders:healthy", "expected MODULE:FUNCTION"),
        ("no_such_module:healthy", "no module 'no_such_module' here"),
        ("builders_of_a_test:number", "has no function 'number'"),
        ("builders_of_a_test:absent", "has no function 'absent'"),
        ("builders_of_a_test:healthy:twice", "builders_of_a_test has no function 'healthy:twice'"),
        ("builders_of_a_test:needy", "must be a function that needs no arguments: missing a required argument"),
        (
            "builders_of_a_test:nothing",
            "must return (model, batch), (model, batch, lengths) or a mapping, got None",
        ),
        ("builders_of_a_test:listed", "or a mapping, got list"),
        ("builders_of_a_test:four", "or a mapping, got a tuple of 4"),
        ("builders_of_a_test:misspelt", "returned ['length']; lstm_utils.diagnose takes ['model', 'batch', 'lengths'"),
        ("builders_of_a_test:incomplete", "returned ['batch'], and model is missing"),
        ("builders_of_a_test:empty", "returned [], and model and batch is missing"),
        ("builders_of_a_test:misfit", "4 lengths"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_clear_line(capsys, builder, message):
    assert main(["diagnose", builder]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize(
    ("builder", "kind", "message"),
    [
        ("builders_of_a_test:raising", ValueError, "a mistake of my own"),
        ("builders_of_a_test:failing", ValueError, "my data is missing"),
        ("broken_of_a_test:healthy", ModuleNotFoundError, "no_such_package"),
    ],
)
def test_an_error_of_the_readers_own_code_keeps_its_traceback(builder, kind, message):
    with pytest.raises(kind, match=message):
        main(["diagnose", builder])


def test_diagnose_runs_as_a_module_from_the_readers_folder(builders):
    done = run_python("-m", "lstm_utils", "diagnose", "builders_of_a_test:wrong", cwd=builders)
    assert (done.returncode, done.stderr) == (1, "")
    assert "error P02" in done.stdout
    done = run_python("-m", "lstm_utils", "diagnose", "builders_of_a_test:raising", cwd=builders)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")
    assert "a mistake of my own\nlstm_utils.diagnose: the module raised this, and no known" in done.stderr


def test_the_help_of_diagnose_says_what_a_builder_is(capsys):
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    printed = capsys.readouterr().out
    assert printed.endswith(f"\n{BUILDER}\n")  # line by line
    assert "Exit status: 0 without errors" in BUILDER


def test_the_module_ends_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lstm_utils", "diagnose", "nothing"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(lstm_utils.__main__.__file__, run_name="__main__")
    assert caught.value.code == 2
    assert "expected MODULE:FUNCTION" in capsys.readouterr().err
