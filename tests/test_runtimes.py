"""Every runtime that runs here gives PyTorch's numbers, starts in a process of its own, and says no in words."""

import copy
import functools
import inspect
import logging
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lstm_utils import other_runtimes, runtimes, torch_runtimes
from lstm_utils.runtimes import RUNTIMES, NotRun, Runtime, cold_start, operators, prepare

pytestmark = pytest.mark.long("compiles the LSTM for every runtime, or starts processes")

LSTM = nn.LSTM(5, 8).eval()
X = torch.randn(6, 1, 5, generator=torch.Generator().manual_seed(0))
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}
# What a machine may lack; anything else is a mistake of ours.
LACKING = r"no bfloat16 arithmetic|is not installed|InvalidCxxCompiler|quantized\.engine is 'none'|a space in that"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Each runtime by name, prepared once: two of them compile for seconds, fewer when nothing is optimized."""

    @functools.cache
    def prepared(name):
        with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
            return prepare(name, LSTM, X, tmp_path_factory.mktemp("runtime"))

    return prepared


def runs(prepared, name):
    if isinstance(got := prepared(name), NotRun):
        assert re.search(LACKING, got.reason), got.reason
        assert "bfloat16" not in got.reason or name.endswith("bf16")
        pytest.skip(got.reason)
    return got


def made_by(build, folder, num_threads=1):
    with runtimes._silence():
        return build(torch_runtimes.Order(LSTM, X, folder, num_threads))


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_gives_the_numbers_of_pytorch(prepared, name):
    runtime = runs(prepared, name)
    output = runtime.call(X)
    assert (output.dtype, output.shape) == (torch.float32, (6, 1, 8))
    torch.testing.assert_close(output, LSTM(X)[0], atol=TOLERANCE[runtime.precision], rtol=0)
    assert re.match(r"\d+ × \w*(rnn|lstm|mm)", runtime.kernel, re.IGNORECASE)
    assert runtime.nbytes > 4 * 8 * (5 + 8)  # even in int8
    assert runtime.build_seconds > 0


@pytest.mark.parametrize("name", ["eager fp32", "inference_mode fp32", "ONNX Runtime fp32", "ONNX Runtime int8"])
def test_these_run_on_every_machine(prepared, name):
    assert isinstance(prepared(name), Runtime), prepared(name).reason


def test_compiling_is_allowed_only_where_it_must_be_and_starts_no_processes(tmp_path, monkeypatch):
    def compiled(_):
        if not torch._dynamo.config.allow_rnn:
            raise torch._dynamo.exc.Unsupported("an nn.LSTM")
        threads = torch._inductor.config.compile_threads
        return (os.environ["TORCHINDUCTOR_CACHE_DIR"], threads, torch.is_inference_mode_enabled()), "states"

    asked = []
    monkeypatch.setattr(torch, "compile", lambda _, **options: asked.append(options) or compiled)
    made = made_by(torch_runtimes.build_compiled, tmp_path)
    call = made.load(**made.arguments)
    assert call(X) == (made.arguments["cache"], 1, True)
    assert asked == [{"fullgraph": True, "dynamic": True}]
    assert not torch._dynamo.config.allow_rnn


def test_aotinductor_compiles_without_gradients_in_a_folder_of_its_own(tmp_path, monkeypatch):
    def compile_package(_, package_path):
        asked.append((package_path, os.environ["TORCHINDUCTOR_CACHE_DIR"], torch.is_grad_enabled()))

    asked = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_package)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    made = made_by(torch_runtimes.build_package, tmp_path)
    ((path, cache, gradients),) = asked
    assert (path, Path(cache).parent, gradients) == (made.arguments["path"], tmp_path, False)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "torch.compile fp32"])
def test_another_shape_is_computed_or_refused(prepared, name):
    runtime, other = runs(prepared, name), torch.randn(9, 3, 5)
    if runtime.shape is None:
        torch.testing.assert_close(runtime.call(other), LSTM(other)[0], atol=TOLERANCE[runtime.precision], rtol=0)
    else:
        with pytest.raises(ValueError, match=r"inputs of shape \(6, 1, 5\) alone, got \(9, 3, 5\)$"):
            runtime.call(other)


def test_a_compiled_one_takes_another_length_as_it_is(prepared):
    runtime, other = runs(prepared, "torch.compile fp32"), torch.randn(9, 1, 5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(runtime.call(other), LSTM(other)[0])


def test_the_lstm_stays_as_it_is(tmp_path):
    lstm, kept = nn.LSTM(5, 8).eval(), {}
    kept.update(copy.deepcopy(lstm.state_dict()))
    runtime = prepare("ONNX Runtime fp32", lstm, X, tmp_path)
    assert not lstm.training
    assert all(torch.equal(tensor, kept[name]) for name, tensor in lstm.state_dict().items())
    before = runtime.call(X)
    nn.init.zeros_(lstm.weight_ih_l0)
    assert torch.equal(runtime.call(X), before)  # it has weights of its own


@pytest.mark.parametrize("name", ["torch int8", "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32"])
def test_a_projection_is_refused_with_the_reason(prepared, name, tmp_path):
    runs(prepared, name)
    got = prepare(name, nn.LSTM(5, 8, proj_size=3).eval(), X, tmp_path)
    assert isinstance(got, NotRun)
    assert got.name == name
    assert re.search(r"proj_size=3|OpConversionFailure", got.reason)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_pytorch_runs_a_projection_as_a_loop(tmp_path):
    lstm = nn.LSTM(5, 8, proj_size=3).eval()
    runtime = prepare("inference_mode fp32", lstm, X, tmp_path)
    assert re.match(r"\d+ × addmm", runtime.kernel)
    torch.testing.assert_close(runtime.call(X), lstm(X)[0])


@pytest.mark.parametrize("name", sorted(set(RUNTIMES) - {"eager fp32", "inference_mode fp32", "eager bf16"}))
def test_those_for_the_cpu_say_so_elsewhere(name, tmp_path):
    got = prepare(name, nn.LSTM(5, 8, device="meta").eval(), X.to("meta"), tmp_path)
    assert got == NotRun(name, "here it runs on the CPU alone, and the LSTM is on meta")


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ONNX Runtime fp32", "onnx"), ("ONNX Runtime int8", "onnxruntime"), ("OpenVINO fp32", "openvino")],
)
def test_a_missing_package_is_named_with_its_extra(name, missing, tmp_path, monkeypatch):
    monkeypatch.setattr(
        other_runtimes.importlib.util, "find_spec", lambda package: None if package == missing else package
    )
    extra = "openvino" if missing == "openvino" else "notebooks"
    reason = f'{missing} is not installed: pip install "lstm-utils[{extra}]"'
    assert prepare(name, LSTM, X, tmp_path) == NotRun(name, reason)


@pytest.mark.parametrize("name", ["torch.compile fp32", "AOTInductor fp32"])
def test_a_missing_compiler_is_the_reason(name, tmp_path):
    other = nn.LSTM(5, 7).eval()  # of which no compiled code is kept
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        got = prepare(name, other, X, tmp_path)
    assert isinstance(got, NotRun)
    assert "No working C++ compiler found" in got.reason


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_runs_where_the_hardware_has_it(there, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_runtimes, "has_bfloat16", lambda _: there)
    got = prepare("eager bf16", LSTM, X, tmp_path)
    if there:
        torch.testing.assert_close(got.call(X), LSTM(X)[0], atol=0.05, rtol=0)
        assert got.precision == "bfloat16"
    else:
        assert got.reason == "this cpu has no bfloat16 arithmetic; PyTorch would emulate it"


def test_openvino_is_asked_whether_it_has_bfloat16(prepared, tmp_path, monkeypatch):
    runs(prepared, "OpenVINO fp32")
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    got = prepare("OpenVINO bf16", LSTM, X, tmp_path)
    assert got == NotRun("OpenVINO bf16", "OpenVINO finds no bfloat16 arithmetic in this CPU")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"])
    made = made_by(functools.partial(other_runtimes.build_openvino, precision="bf16"), tmp_path)
    assert made.arguments == {"path": str(tmp_path / "lstm.xml"), "threads": 1, "precision": "bf16"}


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_is_asked_for_the_kernel_that_computes(precision, prepared, tmp_path, monkeypatch):
    runs(prepared, "OpenVINO fp32")
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"])
    made = made_by(functools.partial(other_runtimes.build_openvino, precision=precision), tmp_path)
    asked, compile_model = [], openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *given: asked.append(given[2:]) or compile_model(*given))
    assert re.fullmatch(r"1 × \w+ (?!None)\w+", made.kernel(None))  # the layer, and what computes it
    assert asked == [("CPU", {"INFERENCE_PRECISION_HINT": precision})]


@pytest.mark.parametrize(
    ("lstm", "example", "message"),
    [
        (nn.LSTM(5, 8), X, r"in eval mode, got LSTM\(5, 8\)$"),
        (nn.LSTM(5, 8, batch_first=True).eval(), X, "time first"),
        (nn.LSTM(5, 8).eval().double(), X, "float32 nn.LSTM"),
        (nn.GRU(5, 8).eval(), X, r"got GRU\(5, 8\)$"),
        (LSTM, X[0], r"shape \(T, N, 5\), got \(1, 5\)$"),
        (LSTM, torch.zeros(6, 1, 4), r"got \(6, 1, 4\)$"),
        (LSTM, torch.zeros(0, 1, 5), r"got \(0, 1, 5\)$"),
        (LSTM, X.double(), "^expected an example of float32, as the LSTM is, got torch.float64$"),
    ],
)
def test_another_module_or_example_is_refused(lstm, example, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare("eager fp32", lstm, example, tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    message = f"the folder {str(tmp_path / 'none')!r} does not exist; create it, or name another"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        prepare("eager fp32", LSTM, X, tmp_path / "none")


def test_an_unknown_runtime_is_refused(tmp_path):
    with pytest.raises(KeyError, match=r"no runtime 'TensorRT'; the known ones are eager fp32, "):
        prepare("TensorRT", LSTM, X, tmp_path)


def test_what_was_built_is_measured(tmp_path):
    start = time.perf_counter()
    runtime = prepare("eager fp32", LSTM, X, tmp_path)
    assert 0 < runtime.build_seconds < time.perf_counter() - start
    assert runtime.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_threads_reach_the_runtime_and_its_fresh_process(tmp_path):
    assert "torch.set_num_threads(3)" in prepare("eager fp32", LSTM, X, tmp_path, 3).program
    assert "torch.set_num_threads(1)" in prepare("eager fp32", LSTM, X, tmp_path).program
    assert "threads=3" in prepare("ONNX Runtime fp32", LSTM, X, tmp_path, 3).program


def test_a_fresh_process_computes_on_the_device_of_the_lstm_or_the_cpu():
    arguments = {"path": "lstm.pt", "device": "cuda:0", "inference": True}
    there = torch_runtimes.Artefact((), torch_runtimes.load_torch, arguments, str)
    assert "x = torch.zeros((6, 1, 5), device='cuda:0')" in runtimes._program(there, (6, 1, 5), 1).splitlines()
    here = torch_runtimes.Artefact((), torch_runtimes.load_int8, {"path": "int8.pt"}, str)
    assert "x = torch.zeros((6, 1, 5), device='cpu')" in runtimes._program(here, (6, 1, 5), 1).splitlines()


# Cold starts ---------------------------------------------------------------------------------------------------------


# The two that compile would take as long again; chapter 14 starts them.
@pytest.mark.parametrize(
    "name", ["eager fp32", "torch int8", "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32"]
)
def test_a_fresh_process_gives_a_first_result(prepared, name, tmp_path, monkeypatch):
    runtime = runs(prepared, name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert 0.02 < cold_start(runtime, rounds=1) < 120
    assert not list(tmp_path.iterdir())  # nor does it leave anything behind: OpenVINO would


@pytest.mark.parametrize("name", ["ONNX Runtime fp32", "OpenVINO fp32"])
def test_some_start_without_pytorch(prepared, name):
    runtime = runs(prepared, name)
    without = runtime.program.replace("import warnings\n", "import sys, warnings\nsys.modules['torch'] = None\n")
    assert without != runtime.program
    assert cold_start(replace(runtime, program=without), rounds=1) > 0


def test_the_median_of_the_rounds_counts(prepared, monkeypatch):
    runtime = replace(prepared("eager fp32"), program="print('ready')")
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: next(clock))
    assert cold_start(runtime) == 2


@pytest.mark.parametrize(
    ("program", "message"),
    [("import no_such_module", "No module named 'no_such_module'$"), ("import os\nos._exit(3)", "exit status 3$")],
)
def test_a_failing_process_is_reported(prepared, program, message):
    with pytest.raises(RuntimeError, match=rf"^the fresh process of 'eager fp32' failed: .*{message}"):
        cold_start(replace(prepared("eager fp32"), program=program), rounds=1)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_operators_name_what_does_the_work():
    a = torch.ones(2, 2)
    assert operators(lambda: torch.mm(a, a) + torch.mm(a, a)) == "2 × mm"
    assert operators(lambda: a + a) == "no known kernel"


def test_operators_leave_a_call_as_it_is():
    found = []
    operators(lambda: found.append(torch.ones(2).to(torch.float16)))
    assert found[0].dtype == torch.float16


def test_fused_layers_and_products_are_listed_however_they_are_written():
    names = ["add", "_LSTM", "addmm", "_LSTM", "mmap", "mkldnn_rnn_layer"]
    assert torch_runtimes.listed(names) == "2 × LSTM, 1 × addmm, 1 × mkldnn_rnn_layer"
    assert torch_runtimes.listed(["add"]) == "no known kernel"


@pytest.mark.parametrize("inference", [True, False])
def test_pytorch_runs_in_inference_mode_or_with_gradients_on_the_device_that_is_asked(inference, tmp_path, monkeypatch):
    order = torch_runtimes.Order(LSTM, X, tmp_path, 1)
    made = torch_runtimes.build_torch(order, **{} if inference else {"inference": False})
    with torch.device("meta"):
        call = made.load(**made.arguments)
    output = call(X)
    assert (output.device.type, output.is_inference(), output.requires_grad) == ("cpu", inference, not inference)
    torch.testing.assert_close(output, LSTM(X)[0], check_device=True)
    with torch.set_grad_enabled(not inference):
        assert made.kernel(call) == operators(lambda: LSTM(X))
    monkeypatch.setattr(torch_runtimes, "operators", lambda _: f"gradients: {torch.is_grad_enabled()}")
    assert made.kernel(call) == f"gradients: {not inference}"


def test_onnx_runtime_computes_on_the_cpu_in_the_threads_that_are_asked_for(tmp_path):
    made = made_by(other_runtimes.build_onnx, tmp_path, 3)
    session = inspect.getclosurevars(made.load(**made.arguments)).nonlocals["session"]
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_onnx_runtime_is_asked_for_the_cpu_and_writes_into_its_folder_alone(tmp_path, monkeypatch):
    import onnxruntime

    asked, made, (here, folder) = [], onnxruntime.InferenceSession, (tmp_path / "here", tmp_path / "folder")
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *given, **named: asked.append(named["providers"]) or made(*given, **named),
    )
    for path in (here, folder):
        path.mkdir()
    monkeypatch.chdir(here)
    assert isinstance(prepare("ONNX Runtime fp32", LSTM, X, folder), Runtime)
    assert len(asked) >= 2  # to compute, and to see the kernel
    assert all(providers == ["CPUExecutionProvider"] for providers in asked)
    assert not list(here.iterdir())


@pytest.mark.parametrize("build", [True, False])
def test_onnx_runtime_sends_nothing_unless_it_is_told_to(build, tmp_path, monkeypatch):
    made = made_by(other_runtimes.build_onnx, tmp_path)
    for value in (None, "0"):
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        if value:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
        if build:
            made_by(other_runtimes.build_onnx, tmp_path)
        else:
            made.load(**made.arguments)
        assert os.environ["ORT_DISABLE_TELEMETRY"] == (value or "1")


def test_openvino_computes_at_once_in_the_threads_and_the_precision_that_are_asked_for(prepared, tmp_path):
    runs(prepared, "OpenVINO fp32")
    made = made_by(other_runtimes.build_openvino, tmp_path)
    (request,) = made.load(**made.arguments).__defaults__
    settings = ("EXECUTION_DEVICES", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT")
    found = [request.get_compiled_model().get_property(name) for name in settings]
    assert [str(value) for value in found] == ["['CPU']", "1", "LATENCY", "<Type: 'float32'>"]


@pytest.mark.parametrize("build", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_openvino_has_one_core_and_sends_nothing(build, first, prepared, tmp_path, monkeypatch):
    runs(prepared, "OpenVINO fp32")
    import openvino

    made = made_by(other_runtimes.build_openvino, tmp_path)
    made.load(**made.arguments)
    core = openvino.kept_core
    monkeypatch.setattr(openvino, "Core", (lambda: core) if first else None)
    if first:
        monkeypatch.delattr(openvino, "kept_core")
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    if build:
        made_by(other_runtimes.build_openvino, tmp_path)
    else:
        made.load(**made.arguments)
    assert openvino.kept_core is core
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize(
    ("load", "arguments"), [(torch_runtimes.load_torch, ("cpu", True)), (torch_runtimes.load_compiled, ("cache",))]
)
def test_a_file_of_weights_holds_nothing_that_could_run(load, arguments, tmp_path):
    torch.save({"state": LSTM.state_dict(), "arguments": re.compile("")}, tmp_path / "lstm.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(str(tmp_path / "lstm.pt"), *arguments)


def test_a_reason_is_one_short_line_without_paths(tmp_path):
    error = OSError(f"cannot open {tmp_path}/lstm.pt or /usr/lib/some/thing.so\nmore\nand more")
    assert runtimes._one_line(error, tmp_path) == "OSError: cannot open …/lstm.pt or …"
    for drive in "Cc":
        error = OSError(rf"in {drive}:\Users\me\x.dll now")
        assert runtimes._one_line(error, tmp_path) == "OSError: in … now"
    assert len(runtimes._one_line(ValueError("x" * 999), tmp_path)) == 300


def test_a_folder_with_a_space_is_named_as_the_reason(tmp_path, monkeypatch):
    error = RuntimeError("CppCompileError: C++ compile error")
    assert runtimes._one_line(error, tmp_path) == "RuntimeError: CppCompileError: C++ compile error"
    monkeypatch.setattr(torch, "__file__", "/with a/space/torch/__init__.py")
    assert runtimes._one_line(error, tmp_path) == (
        "RuntimeError: CppCompileError: C++ compile error; torch hands the compiler its own folder without quotes, and "
        "there is a space in that"
    )
    assert runtimes._one_line(RuntimeError("another"), tmp_path) == "RuntimeError: another"


def test_builders_are_silenced_and_nobody_else(caplog):
    logging.disable(logging.DEBUG)
    try:
        with runtimes._silence():
            warnings.warn("unheard", stacklevel=1)
            logging.getLogger("builder").warning("unheard")
            logging.getLogger("builder").error("heard")
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert caplog.messages == ["heard"]
    with pytest.warns(UserWarning, match="heard again"):
        warnings.warn("heard again", stacklevel=1)


def test_logging_and_the_environment_are_restored(prepared):
    prepared("torch.compile fp32")
    assert logging.root.manager.disable == logging.NOTSET
    assert "runtime" not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")


def test_a_signal_finds_its_stack_after_openvino_is_gone(tmp_path):
    program = """
import gc, signal, subprocess, sys, torch
from lstm_utils.runtimes import prepare
signal.signal(signal.SIGCHLD, lambda *_: None)
made = [prepare(name, torch.nn.LSTM(5, 8).eval(), torch.randn(6, 1, 5), sys.argv[1])
        for name in ("OpenVINO fp32", "OpenVINO bf16")]
del made[0]
del made
gc.collect()
subprocess.run([sys.executable, "-c", ""], check=True)
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 0
