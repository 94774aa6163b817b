"""Pairs of calls with one result: what this package does, and what one would do instead. ``bench`` compares them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, RandomSampler

from lstm_utils.checkpointing import checkpointed_lstm
from lstm_utils.measure import peak_memory
from lstm_utils.onnx_export import export_onnx, quantize_onnx
from lstm_utils.quantization import quantize_lstm, saved_size
from lstm_utils.reference import ReferenceLSTM
from lstm_utils.sequences import LengthBucketSampler, run_packed, valid_mask
from lstm_utils.spec import LSTMSpec


class Case(NamedTuple):
    """Two ways to one result: in words, with code in backticks, and as calls that return what must agree."""

    name: str
    ours: str
    instead: str
    sizes: str
    calls: tuple[Callable[[], Any], Callable[[], Any]]
    agree: Callable[[Any, Any], bool]
    nbytes: tuple[Callable[[], int], Callable[[], int]] | None = None  # the bytes of each; None where time is compared


def error_between(ours: Sequence[Tensor], instead: Sequence[Tensor]) -> float:
    """The largest difference between two lists of tensors, relative to the largest entry of each tensor."""
    if [a.shape for a in ours] != [b.shape for b in instead]:
        return math.inf
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, instead, strict=True)]
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def close(ours: Sequence[Tensor], instead: Sequence[Tensor]) -> bool:
    """Equal but for rounding, in sums of float32 over a thousand steps."""
    return error_between(ours, instead) < 1e-3


def close_to_int8(ours: Sequence[Tensor], instead: Sequence[Tensor]) -> bool:
    """Within a tenth of the largest output; and no closer than weights of 8 bits can be, or nothing was quantized."""
    return 1e-5 < error_between(ours, instead) < 0.1


def need(module: str) -> Any:
    """Import what only these comparisons need."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{module} is not installed: pip install "lstm-utils[test]"') from error


def training_step(output: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """The output, and the gradients of a loss on it."""
    return [output.detach(), *torch.autograd.grad(output.square().mean(), list(parameters))]


def count_parameters(quick: bool) -> Iterator[Case]:
    """Of an LSTM that does not exist yet; a trillion only on the meta device, which allocates nothing."""
    torchinfo = need("torchinfo")

    def summary(spec: LSTMSpec, device: str) -> Any:
        return torchinfo.summary(spec.build(device), verbose=0).total_params

    small, wide, huge = LSTMSpec(100, 64, 2), LSTMSpec(100, 128 if quick else 512, 2), LSTMSpec(250_000, 250_000, 2)
    for spec, device in ((small, "cpu"), (wide, "cpu"), (huge, "meta")):
        instead = f"`torchinfo.summary`{', on the meta device' if device == 'meta' else ''}"
        calls = spec.num_parameters, partial(summary, spec, device)
        sizes = f"{spec.num_parameters():,} parameters"
        yield Case("count parameters", "`LSTMSpec.num_parameters`", instead, sizes, calls, int.__eq__)
    counts = summary(huge, "meta"), summary(small, "cpu")
    sizes, both = "{:,} parameters against {:,}".format(*counts), (huge.num_parameters, small.num_parameters)
    yield Case("count parameters", "a large `LSTMSpec`", "a small one", sizes, both, lambda *found: found == counts)


def loop_of_gates(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """A layer as tutorials write it: eight matrix products a step, one for each gate and what it reads."""
    weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
    w_ii, w_if, w_ig, w_io = weight_ih.chunk(4)
    w_hi, w_hf, w_hg, w_ho = weight_hh.chunk(4)
    b_i, b_f, b_g, b_o = (bias_ih + bias_hh).chunk(4)
    h = c = x.new_zeros(x.shape[1], lstm.hidden_size)
    outputs = []
    for x_t in x:  # (N, I)
        i = torch.sigmoid(x_t @ w_ii.T + h @ w_hi.T + b_i)
        f = torch.sigmoid(x_t @ w_if.T + h @ w_hf.T + b_f)
        g = torch.tanh(x_t @ w_ig.T + h @ w_hg.T + b_g)
        o = torch.sigmoid(x_t @ w_io.T + h @ w_ho.T + b_o)
        c = f * c + i * g
        h = o * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)  # (T, N, H)


def write_out_the_cell(quick: bool) -> Iterator[Case]:
    """The readable LSTM against the one of PyTorch, and against the loop of the tutorials."""
    lstm, reference = nn.LSTM(32, 128), ReferenceLSTM(32, 128)
    reference.load_state_dict(lstm.state_dict())
    x = torch.randn(20 if quick else 100, 16, 32)
    sizes = f"training step, T = {len(x)}, N = 16, I = 32, H = 128"

    def ours() -> list[Tensor]:
        return training_step(reference(x)[0], reference.parameters())

    def fused() -> list[Tensor]:
        return training_step(lstm(x)[0], lstm.parameters())

    def naive() -> list[Tensor]:
        return training_step(loop_of_gates(lstm, x), lstm.parameters())

    for instead, call in (("`nn.LSTM`", fused), ("a loop, each gate by itself", naive)):
        yield Case("a cell to be read", "`ReferenceLSTM`", instead, sizes, (ours, call), close)


class Epoch(NamedTuple):
    """The samples in order, the sum of the loss and its gradients, and steps with padding."""

    seen: list[int]
    sums: list[Tensor]
    steps: int


def run_epoch(lstm: nn.LSTM, sequences: Sequence[Tensor], batches: Iterable[list[int]], packed: bool) -> Epoch:
    """Forward and backward over all batches, with a loss summed over real steps; the weights stay as they are."""
    seen, steps, loss_sum = [], 0, torch.zeros(())
    lstm.zero_grad()
    for batch in batches:
        x = pad_sequence([sequences[at] for at in batch], batch_first=True)  # (N, T, I)
        lengths = torch.tensor([len(sequences[at]) for at in batch])
        output = run_packed(lstm, x, lengths)[0] if packed else lstm(x)[0]  # (N, T, H)
        loss = output[valid_mask(lengths, batch_first=True)].square().sum()
        loss.backward()
        loss_sum += loss.detach()
        seen += batch
        steps += x.shape[0] * x.shape[1]
    return Epoch(sorted(seen), [loss_sum, *(p.grad.clone() for p in lstm.parameters() if p.grad is not None)], steps)


def same_epoch(ours: Epoch, instead: Epoch) -> bool:
    """Every sample once, and the same loss and gradients."""
    return ours.seen == instead.seen == list(range(len(ours.seen))) and close(ours.sums, instead.sums)


def order_an_epoch(quick: bool) -> Iterator[Case]:
    """Batches of similar length against batches as they come; and packing on top against a mask."""
    generator = np.random.default_rng(torch.initial_seed())
    lengths = np.clip(generator.lognormal(3, 0.7, 64 if quick else 256).round(), 3, 200).astype(int)
    sequences = [torch.randn(length, 32) for length in lengths.tolist()]
    lstm = nn.LSTM(32, 128, batch_first=True)
    shuffled = BatchSampler(RandomSampler(range(len(lengths))), 32, drop_last=False)
    bucketed = LengthBucketSampler(lengths, 32)

    def epoch(batches: Iterable[list[int]], packed: bool = False) -> Callable[[], Epoch]:
        return partial(run_epoch, lstm, sequences, batches, packed)

    ours, instead = epoch(bucketed), epoch(shuffled)
    padding = [1 - lengths.sum() / call().steps for call in (ours, instead)]
    data = f"{len(lengths)} sequences of {lengths.min()} to {lengths.max()} steps"
    sizes = "{}, {:.0%} padding instead of {:.0%}".format(data, *padding)
    yield Case("order an epoch", "`LengthBucketSampler`", "shuffled batches", sizes, (ours, instead), same_epoch)
    calls, data = (epoch(bucketed, packed=True), ours), f"{data}, bucketed"
    yield Case("hide the padding", "`run_packed`", "`valid_mask` on the loss", data, calls, same_epoch)


def long_sequence(seq_len: int) -> tuple[nn.LSTM, nn.Linear, Tensor]:
    """A model, and a batch of 8 sequences: (T, 8, 16)."""
    return nn.LSTM(16, 128), nn.Linear(128, 1), torch.randn(seq_len, 8, 16)


def long_step(way: str, lstm: nn.LSTM, readout: nn.Linear, x: Tensor) -> list[Tensor]:
    """One training step: "plain", with one checkpoint around the "whole call", or in "segments"."""
    if way == "segments":
        guess = checkpointed_lstm(lstm, x, readout=readout)[0]
    else:
        output = checkpoint(lstm, x, use_reentrant=False)[0] if way == "whole call" else lstm(x)[0]
        guess = readout(output)  # (T, N, 1)
    return training_step(guess, [*lstm.parameters(), *readout.parameters()])


def peak_of(way: str, seq_len: int) -> int:
    """Bytes by which a step raises the memory, in a fresh process; a short step before it loads the libraries."""
    setup = f"long_step({way!r}, *long_sequence(16)); batch = long_sequence({seq_len})"
    return peak_memory(f"long_step({way!r}, *batch)", f"from lstm_utils.alternatives import *; {setup}")


def save_memory(quick: bool) -> Iterator[Case]:
    """Segments of time with the readout inside, against one checkpoint around the call, and against none."""
    seq_len = 256 if quick else 1024
    batch = long_sequence(seq_len)
    sizes = f"training step, T = {seq_len:,}, N = 8, I = 16, H = 128"
    for instead, way in (("`checkpoint(lstm, x)`", "whole call"), ("no checkpoint", "plain")):
        calls = partial(long_step, "segments", *batch), partial(long_step, way, *batch)
        case = Case("train on long sequences", "`checkpointed_lstm`", instead, sizes, calls, close)
        if way == "whole call" and not quick:  # every number takes a process of its own
            yield case._replace(nbytes=(partial(peak_of, "segments", seq_len), partial(peak_of, way, seq_len)))
        yield case


def run_module(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, without a graph."""
    with torch.inference_mode():
        return [module(x)[0]]


def run_elsewhere(quick: bool) -> Iterator[Case]:
    """One sequence through an exported file, and through int8 weights, against the module as it is."""
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1

    def session_of(path: Path, x: Tensor) -> Callable[[], list[Tensor]]:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        return lambda: [torch.from_numpy(session.run(None, feed)[0])]

    for width in (64,) if quick else (64, 512):
        lstm, x = nn.LSTM(width, width, batch_first=True).eval(), torch.randn(1, 50, width)
        with TemporaryDirectory() as folder:
            exported, small = Path(folder, "lstm.onnx"), Path(folder, "int8.onnx")
            export_onnx(lstm, x, exported)
            quantize_onnx(exported, small)
            onnx, onnx_int8 = session_of(exported, x), session_of(small, x)
        sizes = f"inference, T = 50, N = 1, I = H = {width}"
        module, eager = quantize_lstm(lstm), partial(run_module, lstm, x)
        case = Case("run an LSTM", "`export_onnx`", "`nn.LSTM`", sizes, (onnx, eager), close)
        yield case
        case = case._replace(name="run it in int8", agree=close_to_int8)
        yield case._replace(ours="`quantize_onnx`", calls=(onnx_int8, eager))
        case = case._replace(ours="`quantize_lstm`", calls=(partial(run_module, module, x), eager))
        yield case
        nbytes = partial(saved_size, module), partial(saved_size, lstm)
        yield case._replace(name="store it", sizes=f"saved weights, I = H = {width}", nbytes=nbytes)


CASES = (count_parameters, write_out_the_cell, order_an_epoch, save_memory, run_elsewhere)
