import io
import itertools
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lstm_utils import compare_times, hardware, measure, memory, resolve_device
from lstm_utils.measure import Ratio, Timings, peak_memory, saved_bytes

# Devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def present(monkeypatch):
    """Pretend that this machine has the devices named, beside its CPU."""

    def pretend(*devices):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "cuda" in devices else 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)

    return pretend


@pytest.mark.parametrize(
    ("devices", "name", "expected"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "mps"),
        (("cuda",), "auto", "cuda"),
        (("cuda", "mps"), "auto", "cuda"),
        (("cuda", "mps"), "mps", "mps"),
        (("cuda", "mps"), "cpu", "cpu"),
        (("cuda",), "cuda:1", "cuda:1"),
    ],
)
def test_a_name_stands_for_a_device(present, devices, name, expected):
    present(*devices)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("devices", "name", "here"),
    [
        ((), "cuda", "cpu"),
        ((), "cuda:0", "cpu"),
        (("cuda",), "mps", "cuda, cpu"),
        (("cuda", "mps"), "tpu", "cuda, mps, cpu"),
        ((), "", "cpu"),
    ],
)
def test_an_absent_device_is_refused_with_those_present(present, devices, name, here):
    present(*devices)
    with pytest.raises(ValueError, match=f"^device '{name}' is not available here; use 'auto' or one of: {here}$"):
        resolve_device(name)


def test_a_device_number_that_is_not_there_is_refused(present):
    present("cuda")
    with pytest.raises(ValueError, match=r"^device 'cuda:2' is not available here; there are 2 CUDA devices$"):
        resolve_device("cuda:2")


def test_the_first_of_one_device_is_there_with_and_without_its_number(present, monkeypatch):
    present("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [resolve_device(name) for name in ("cuda", "cuda:0")] == [torch.device("cuda"), torch.device("cuda:0")]
    with pytest.raises(ValueError, match=r"^device 'cuda:1' is not available here; there are 1 CUDA devices$"):
        resolve_device("cuda:1")


def test_what_is_no_name_and_what_torch_cannot_read_is_refused():
    with pytest.raises(TypeError, match=r"^device must be the name of a device, such as 'cpu', or 'auto', got device"):
        resolve_device(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^device must name a device that torch knows, got 'cpu:x': "):
        resolve_device("cpu:x")


# Hardware --------------------------------------------------------------------------------------------------------


def test_hardware_describes_this_machine():
    found = hardware()
    assert found.device == "CPU"
    assert 1 <= found.cores <= os.cpu_count()
    assert found.threads == torch.get_num_threads()
    assert found.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert (found.torch, found.python) == (torch.__version__, platform.python_version())
    assert found.system == f"{platform.system()} {platform.machine()}"


def test_hardware_is_printed_on_one_line_with_every_field():
    found = hardware("cpu")
    assert "\n" not in str(found)
    assert all(str(value) in str(found) for value in vars(found).values())
    assert "1 core, 2 threads" in str(replace(found, cores=1, threads=2))


def test_hardware_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    assert hardware("cuda:1").device == "GPU number 1"
    assert hardware(torch.device("mps")).device == "MPS"


@pytest.mark.parametrize("error", [AssertionError, RuntimeError])
def test_a_gpu_that_is_not_here_has_no_hardware(monkeypatch, error):
    def fail(_):
        raise error("no such GPU")

    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    with pytest.raises(ValueError, match=r"^device 'cuda:1' is not available here: no such GPU$"):
        hardware("cuda:1")
    with pytest.raises(TypeError, match=r"^device must be a device, or the name of one such as 'cpu', got 3 "):
        hardware(3)


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5, 7, 8}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert hardware().cores == 5


@pytest.mark.parametrize(("counted", "cores"), [(6, 6), (None, 1)])
def test_cores_are_counted_where_affinity_is_unknown(monkeypatch, counted, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert hardware().cores == cores


@pytest.mark.parametrize(
    ("cpuinfo", "from_platform", "expected"),
    [
        ("processor : 0\nmodel name\t: Some CPU @ 2: GHz\nmodel name : another\n", "x86_64", "Some CPU @ 2: GHz"),
        ("Processor : 0\nModel Name : Cortex\n", "", "Cortex"),
        ("processor : 0\n", "from the platform", "from the platform"),
        (None, "from the platform", "from the platform"),
        (None, "", "the architecture"),
    ],
    ids=["Linux", "another case", "no model name", "no cpuinfo", "nothing at all"],
)
def test_the_processor_has_a_name_everywhere(monkeypatch, tmp_path, cpuinfo, from_platform, expected):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(measure, "Path", {"/proc/cpuinfo": tmp_path / "cpuinfo"}.__getitem__)
    monkeypatch.setattr(platform, "processor", lambda: from_platform)
    monkeypatch.setattr(platform, "machine", lambda: "the architecture")
    assert hardware().processor == expected


# Timings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.1, 1.3, "slower"),
        (0.7, 0.9, "faster"),
        (0.9, 1.1, "neither faster nor slower"),
        (1.0, 1.2, "neither faster nor slower"),
        (0.8, 1.0, "neither faster nor slower"),
    ],
)
def test_the_word_is_chosen_by_the_middle_half(low, high, word):
    assert Ratio(1.0, low, high).word == word


def test_a_ratio_prints_its_spread():
    assert str(Ratio(1.234, 1.1, 1.5)) == "1.23× (1.10–1.50)"


def test_ratios_are_taken_round_by_round():
    drifting = {"a": (8.0, 2.0, 20.0, 4.0, 6.0), "b": (4.0, 1.0, 5.0, 2.0, 3.0)}  # twice as long, and once four times
    timings = Timings(drifting, num_threads=1)
    assert timings.ratio("a", "b") == Ratio(2.0, 2.0, 2.0)
    assert timings.ratio("b", "b") == Ratio(1.0, 1.0, 1.0)
    assert (timings.median("a"), timings.median("b")) == (6.0, 3.0)


def test_quartiles_are_the_spread():
    timings = Timings({"a": (1.0, 2.0, 3.0, 4.0, 5.0), "b": (1.0,) * 5}, num_threads=1)
    assert timings.ratio("a", "b") == Ratio(median=3.0, low=2.0, high=4.0)


def test_a_ratio_needs_as_many_rounds_of_both():
    with pytest.raises(ValueError, match="shorter"):
        Timings({"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0)}, num_threads=1).ratio("a", "b")


@pytest.fixture
def numbers(monkeypatch):
    """How many calls were timed together, each time; a call takes 4 ms."""
    found = []

    def timer(*_, num_threads, **__):
        assert num_threads == 1
        return SimpleNamespace(timeit=lambda number: found.append(number) or SimpleNamespace(mean=0.004))

    monkeypatch.setattr(measure, "Timer", timer)
    return found


def test_nine_rounds_of_a_fiftieth_second_on_one_thread_are_the_default(numbers):
    assert compare_times({"call": list}) == Timings({"call": (0.004,) * 9}, num_threads=1)
    assert numbers == [1, *[5] * 9]


@pytest.mark.parametrize(("min_seconds", "calls"), [(0, 1), (0.001, 1), (0.008, 2), (0.1, 25)])
def test_a_round_lasts_as_long_as_asked(numbers, min_seconds, calls):
    compare_times({"call": list}, rounds=3, min_seconds=min_seconds)
    assert numbers == [1, calls, calls, calls]


def test_a_deliberately_slower_call_is_slower():
    timings = compare_times(
        {"sleeps": lambda: time.sleep(0.005), "sleeps less": lambda: time.sleep(0.001)}, rounds=5, min_seconds=0.005
    )
    ratio = timings.ratio("sleeps", "sleeps less")
    assert ratio.word == "slower"
    assert 1.5 < ratio.median < 6
    assert timings.ratio("sleeps less", "sleeps").word == "faster"
    assert timings.median("sleeps") >= 0.005


def test_candidates_take_turns():
    order = []
    candidates = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = compare_times(candidates, rounds=4, min_seconds=0)
    turns = "".join(name for name, _ in itertools.groupby(order))
    assert turns == "abc" * 5  # one to find out how often to repeat a call, then four rounds
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize("num_threads", [1, 2])
def test_calls_run_with_the_threads_asked_for(num_threads):
    seen = set()
    before = torch.get_num_threads()
    timings = compare_times(
        {"call": lambda: seen.add(torch.get_num_threads())}, rounds=3, min_seconds=0, num_threads=num_threads
    )
    assert seen == {num_threads}
    assert timings.num_threads == num_threads
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("candidates", "rounds", "message"),
    [
        ({}, 9, r"got \[\] and 9"),
        ({"call": list}, 2, r"at least one candidate and 3 rounds, got \['call'\] and 2"),
        ({"call": list}, 1, r"at least one candidate and 3 rounds, got \['call'\] and 1"),
        ({"call": list}, 0, "^rounds must be an integer of at least 1, got 0$"),
    ],
)
def test_too_little_to_compare_is_refused(candidates, rounds, message):
    with pytest.raises(ValueError, match=message):
        compare_times(candidates, rounds=rounds)


def test_what_cannot_be_called_and_no_threads_are_refused():
    with pytest.raises(TypeError, match=r"^candidates\['b'\] must be a function to call, got 3 of type int$"):
        compare_times({"a": list, "b": 3})
    with pytest.raises(ValueError, match=r"^num_threads must be an integer of at least 1, got 0$"):
        compare_times({"a": list}, num_threads=0)


# Memory ----------------------------------------------------------------------------------------------------------


def test_what_is_kept_for_backward_counts_once_and_without_what_exists_anyway():
    x, w = torch.randn(10, 10), torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x * w) == 400  # x alone: the gradient of x, which would need w, is not asked for
    assert saved_bytes(lambda: x * w, [x]) == 0
    assert saved_bytes(lambda: (x * w).exp() * x[2:5].sum() + (x * w)) == 400 + 400 + 4
    assert saved_bytes(lambda: x * w, [x, x[0]]) == 0  # two tensors of one storage
    scale = torch.tensor(2.0)
    assert [saved_bytes(lambda: scale * w, without) for without in ((), scale)] == [4, 0]  # one may stand alone
    with pytest.raises(TypeError, match=r"^without\[1\] must be a tensor, got 'w'"):
        saved_bytes(lambda: x * w, [x, "w"])


def test_nothing_is_kept_without_a_graph_nor_after_backward():
    w = torch.randn(10, requires_grad=True)
    with torch.no_grad():
        assert saved_bytes(lambda: w.exp()) == 0
    assert saved_bytes(lambda: w.exp().sum().backward()) == 0
    assert w.grad is not None
    assert saved_bytes(lambda: [w.exp().sum().item(), w.exp()]) == 40  # the graph of the first is gone


def test_gradients_are_right_while_bytes_are_counted():
    w, found = torch.randn(3, requires_grad=True), []

    def call():
        found.append(torch.autograd.grad((w**3).sum(), w)[0])

    saved_bytes(call)
    assert torch.allclose(found[0], 3 * w**2)


@pytest.mark.parametrize("size", [64, 256])
def test_the_peak_is_that_of_the_statement(size):
    mebibytes = peak_memory(f"a = make({size}); del a; make(8)", "make = lambda m: torch.ones(m, 2**18)") / 2**20
    assert size <= mebibytes < size + 16


def test_the_peak_of_the_setup_does_not_count():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    assert peak_memory("torch.ones(16, 2**18)", "torch.ones(200, 2**18); print('done')") < 64 * 2**20


def test_the_fresh_process_gets_device_and_threads_and_may_print():
    peak_memory("print('x'); assert str(device) == 'cpu' and torch.get_num_threads() == 2", num_threads=2)


def test_the_fresh_process_is_told_what_was_asked(monkeypatch):
    orders = []

    def run(_, input, **__):
        orders.append(json.loads(input))
        return SimpleNamespace(returncode=0, stdout="7\n")

    monkeypatch.setattr(memory.subprocess, "run", run)
    assert peak_memory("step()") == 7
    assert peak_memory("step()", "import model", torch.device("cuda:1"), 3) == 7
    assert orders == [
        {"call": "step()", "setup": "", "device": "cpu", "num_threads": 1},
        {"call": "step()", "setup": "import model", "device": "cuda:1", "num_threads": 3},
    ]


@pytest.mark.parametrize(("stderr", "said"), [("", "it said nothing"), ("a warning\nan error\n", "an error")])
def test_a_fresh_process_that_fails_is_quoted(monkeypatch, stderr, said):
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3, stderr=stderr))
    with pytest.raises(RuntimeError, match=f"^the fresh process failed with exit status 3: {said}$"):
        peak_memory("step()")


@pytest.mark.parametrize(
    ("call", "message"), [("1 / 0", "1: ZeroDivisionError: division by zero$"), ("raise SystemExit(3)", "3: ")]
)
def test_what_fails_in_the_fresh_process_is_told(call, message):
    with pytest.raises(RuntimeError, match=f"^the fresh process failed with exit status {message}"):
        peak_memory(call)


def test_peak_memory_refuses_a_device_it_cannot_read():
    with pytest.raises(ValueError, match="can be measured on 'cpu' and 'cuda', got 'mps'"):
        peak_memory("pass", device="mps")


def order_here(monkeypatch, capsys, device):
    """The number that the fresh process prints, in this process: coverage does not look into the other."""
    setup = f"assert (__name__, str(device), torch.__name__) == ('__main__', {device!r}, 'torch'); seen = [1]"
    order = {"call": "seen.append(2)", "setup": setup, "device": device, "num_threads": torch.get_num_threads()}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(order)))
    memory._peak_of_order()
    return int(capsys.readouterr().out)


@pytest.mark.parametrize("folder", [".", "absent"], ids=["Linux", "elsewhere"])
def test_an_order_is_carried_out(monkeypatch, tmp_path, capsys, folder):
    clear_refs = tmp_path / folder / "clear_refs"
    monkeypatch.setattr(memory, "_peak_resident", iter([100, 350]).__next__)
    monkeypatch.setattr(memory, "Path", {"/proc/self/clear_refs": clear_refs}.__getitem__)
    assert order_here(monkeypatch, capsys, "cpu") == 250
    assert folder == "absent" or clear_refs.read_text() == "5"  # see proc_pid_clear_refs(5): the peak is reset


def test_on_cuda_the_peak_is_what_torch_allocated(monkeypatch, capsys):
    second = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", {second: None}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_allocated", {second: 1000}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {second: 1700}.__getitem__)
    assert order_here(monkeypatch, capsys, "cuda:1") == 700


@pytest.mark.parametrize(
    ("status", "system", "expected"),
    [
        (b"Name: \xff\nVmHWM:\t  12 kB\nVmRSS: 3 kB\n", "linux", 12 * 1024),
        (b"Name: x\n", "linux", 7 * 1024),
        (None, "darwin", 7),
    ],
    ids=["Linux", "Linux without the line", "macOS"],
)
def test_the_peak_is_read_where_the_system_has_it(monkeypatch, tmp_path, status, system, expected):
    resource = pytest.importorskip("resource")
    if status is not None:
        (tmp_path / "status").write_bytes(status)
    monkeypatch.setattr(memory, "Path", {"/proc/self/status": tmp_path / "status"}.__getitem__)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr(resource, "getrusage", {resource.RUSAGE_SELF: SimpleNamespace(ru_maxrss=7)}.__getitem__)
    assert memory._peak_resident() == expected
