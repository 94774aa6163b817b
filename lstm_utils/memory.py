"""Memory: what autograd keeps for a backward pass, exactly, and the peak of a statement in a fresh process."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from lstm_utils.arguments import as_device, at_least, require, require_callable, require_tensor


class _Kept:
    """What autograd holds in place of a tensor that it saved; alive as long as autograd needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that held its own graph would never be freed


def saved_bytes(call: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass: exact, and the same in every run.

    Each storage counts once, however many tensors share it. Only what autograd saved is seen: not gradients, nor what
    a call allocates and frees, nor what ``backward()`` itself needs.

    Args:
        call: runs forward, and returns something that holds the graph: the loss, or outputs.
        without: tensors that exist anyway and do not count, such as the input and the parameters.

    Raises:
        TypeError: ``call`` cannot be called, or ``without`` holds other things than tensors.
    """
    require_callable("call", call)
    require("without", without, Iterable, "a list of tensors")
    for number, tensor in enumerate(without := [without] if isinstance(without, Tensor) else list(without)):
        require_tensor(f"without[{number}]", tensor)
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        alive.add(kept := _Kept(tensor))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = call()
    storages = [kept.tensor.untyped_storage() for kept in alive]
    del result  # the graph had to live until here
    # By the storage itself: its address is 0 for every tensor on the device "meta".
    sizes = {storage._cdata: storage.nbytes() for storage in storages}
    return sum(sizes.values()) - sum(sizes.pop(tensor.untyped_storage()._cdata, 0) for tensor in without)


def peak_memory(call: str, setup: str = "", device: torch.device | str = "cpu", num_threads: int = 1) -> int:
    """Bytes by which a statement raises the memory in use at its highest point, in a fresh Python process.

    Fresh, because a process keeps what it once took from the system, and later needs show up as nothing. On a CPU it
    is resident memory as the operating system counts it, so it varies by some MiB; on CUDA, what PyTorch allocated.

    Args:
        call: a Python statement, such as ``"step()"``.
        setup: statements that run before it and do not count: imports, functions (``inspect.getsource`` gives their
            source), a small first call that loads libraries. Both find ``torch`` and ``device`` defined.
        device: "cpu" or a CUDA device.
        num_threads: threads that PyTorch may use.

    Raises:
        TypeError: a statement is no text, or the device neither a text nor a device.
        ValueError: the device is of another kind, or ``num_threads`` no integer of at least 1.
        RuntimeError: the statements failed; the message ends with their error.
    """
    require("call", call, str, "a Python statement as a text")
    require("setup", setup, str, "Python statements as a text")
    at_least("num_threads", num_threads, 1)
    if as_device("device", device).type not in ("cpu", "cuda"):
        raise ValueError(f"peak memory can be measured on 'cpu' and 'cuda', got {str(device)!r}")
    order = json.dumps({"call": call, "setup": setup, "device": str(device), "num_threads": num_threads})
    program = "import lstm_utils.memory as m; m._peak_of_order()"
    done = subprocess.run([sys.executable, "-c", program], input=order, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the fresh process failed with exit status {done.returncode}: {said}")
    return int(done.stdout.splitlines()[-1])  # what the statements print comes before it


def _peak_of_order() -> None:
    """In the fresh process: read the order, run it, print the number of bytes."""
    order = json.loads(sys.stdin.read())
    device = torch.device(order["device"])
    torch.set_num_threads(order["num_threads"])
    names = {"__name__": "__main__", "torch": torch, "device": device}
    exec(order["setup"], names)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        exec(order["call"], names)
        print(torch.cuda.max_memory_allocated(device) - before)
        return
    with contextlib.suppress(OSError):  # Linux: the peak starts anew; elsewhere, or if refused, that of setup counts
        Path("/proc/self/clear_refs").write_bytes(b"5")
    before = _peak_resident()
    exec(order["call"], names)
    print(_peak_resident() - before)


def _peak_resident() -> int:
    """The highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    for line in status.read_bytes().splitlines() if status.exists() else ():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Windows; and on Linux ru_maxrss is inherited from the parent process

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
