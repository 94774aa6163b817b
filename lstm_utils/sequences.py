"""Sequences of different lengths in one batch: masks, packed runs, last steps, masked means and bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import Sampler

from lstm_utils.arguments import at_least, integers, require_even, require_flag, require_module, require_tensor
from lstm_utils.reference import ReferenceLSTM, States

Lengths = Tensor | Sequence[int] | npt.NDArray[np.integer[Any]]


def valid_mask(lengths: Lengths, seq_len: int | None = None, *, batch_first: bool) -> Tensor:
    """Which steps of a padded batch are real.

    True marks a real step. (The ``key_padding_mask`` of PyTorch's attention says the opposite: True is padding.)

    Args:
        lengths: real steps of each sequence, N integers of at least 1.
        seq_len: T, the steps of the padded batch; the longest length when left out.
        batch_first: the layout of the batch that the mask is for.

    Returns:
        a bool tensor, (N, T) with ``batch_first``, else (T, N), on the device of the lengths.

    Raises:
        TypeError: the lengths are no integers, or ``batch_first`` is no bool.
        ValueError: a length lies outside 1 to T, there are none, or ``seq_len`` is no integer.
    """
    require_flag("batch_first", batch_first)
    if not isinstance(seq_len, Tensor | None):  # an exporter traces sizes as tensors
        at_least("seq_len", seq_len, 1)
    steps = _in_range(integers(lengths), seq_len)
    valid = torch.arange(int(steps.max()) if seq_len is None else seq_len, device=steps.device) < steps[:, None]
    return valid if batch_first else valid.T


def run_packed(
    lstm: nn.LSTM | ReferenceLSTM, x: Tensor, lengths: Lengths, hx: States | None = None
) -> tuple[Tensor, States]:
    """Run an LSTM over a padded batch as if every sequence were alone: pack, run, pad again.

    Args:
        lstm: its ``batch_first`` says how ``x`` is laid out.
        x: the padded batch, (N, T, I) with ``batch_first``, else (T, N, I). What stands in the padding is never read.
        lengths: real steps of each sequence, N integers from 1 to T in any order, on any device.
        hx: (h_0, c_0), as ``lstm`` takes them; zeros when left out.

    Returns:
        output, padded with zeros to all T steps of ``x`` and in its layout, and (h_n, c_n), each row the state after
        that sequence's own last step (in the reverse direction: its first). Rows are in the order of ``x``.

    Raises:
        TypeError: ``lstm`` is no module, ``x`` no tensor, or the lengths are no integers.
        ValueError: ``x`` is not 3-D, a length lies outside 1 to T, or the lengths or states are not N.
        RuntimeError: from ``lstm``, whose states have another width or number of layers.

    Source: ``torch.nn.utils.rnn.pack_padded_sequence`` and ``pad_packed_sequence``, in PyTorch's documentation.
    """
    require_module("lstm", lstm)
    seq_len, steps = steps_of(x, lengths, lstm.batch_first)
    inner = getattr(lstm, "lstm", lstm)  # of a wrapper such as WeightDrop
    for name, state in zip(("h_0", "c_0"), () if hx is None else hx, strict=False):
        # A packed nn.LSTM given the states of a larger batch takes some of them; of more layers it may crash.
        if state.shape[:-1] != ((1 + inner.bidirectional) * inner.num_layers, len(steps)):
            shape = f"(D·layers, {len(steps)}, width), whatever batch_first says"
            raise ValueError(f"{name} must have shape {shape}, got {tuple(state.shape)}")
    # Lengths steer the packing from the CPU; without enforce_sorted=False, rows would have to come longest first.
    packed = pack_padded_sequence(x, steps.cpu(), lstm.batch_first, enforce_sorted=False)
    output, (h_n, c_n) = lstm(packed, hx)
    # Without total_length, T would shrink to the longest length, and targets or masks of T steps would not fit.
    padded, _ = pad_packed_sequence(output, lstm.batch_first, total_length=seq_len)
    return padded, (h_n, c_n)


def last_valid_step(output: Tensor, lengths: Lengths, *, batch_first: bool, bidirectional: bool) -> Tensor:
    """The step at which an LSTM's output has seen the whole sequence: the last real one, of each row.

    In the reverse direction that is step 0. After :func:`run_packed` the result equals ``h_n[-1]``, and with two
    directions ``torch.cat([h_n[-2], h_n[-1]], dim=1)``. In a run over padding only the forward half is right: the
    reverse half has read the padding first.

    Args:
        output: (N, T, D·H_out) with ``batch_first``, else (T, N, D·H_out).
        lengths: real steps of each sequence, N integers from 1 to T.
        batch_first: as the LSTM was built.
        bidirectional: as the LSTM was built.

    Returns:
        (N, D·H_out), the forward half first.

    Raises:
        TypeError: ``output`` is no tensor, a layout no bool, or the lengths are no integers.
        ValueError: ``output`` is not 3-D or cannot be split in two directions, a length lies outside 1 to T, or the
            lengths are not N.
    """
    require_flag("bidirectional", bidirectional)
    steps = steps_of(output, lengths, batch_first)[1].to(output.device)
    width = output.shape[2]
    require_even(width if bidirectional else 0)
    time_first = output.transpose(0, 1) if batch_first else output
    last = time_first[steps - 1, torch.arange(len(steps), device=output.device)]
    if not bidirectional:
        return last
    return torch.cat([last[:, : width // 2], time_first[0, :, width // 2 :]], dim=1)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean over real steps: a loss that padding cannot move, or mean-pooled outputs.

    What stands at padded steps has no influence, even if it is nan or inf, and its gradient is exactly zero. (If the
    operation *before* has an infinite slope there, 0 · inf is nan all the same: pad with harmless values.)

    Args:
        values: one value a step, shaped as the mask, or several: (N, T, …) or (T, N, …).
        mask: bool, True at real steps, from :func:`valid_mask`.
        dim: the dimension of the steps, for one mean a sequence; all real steps count alike when left out.

    Returns:
        a scalar, or with ``dim`` the values' shape without that dimension; of integers and bools in PyTorch's default
        dtype. float16 and bfloat16 are added up in float32; what float32 itself cannot hold is inf, as in
        ``torch.mean``.

    Raises:
        TypeError: the values are no tensor, or the mask is none of bool.
        ValueError: the mask does not fit the values, has no dimension ``dim``, or leaves nothing to average over.
    """
    require_tensor("values", values)
    if (dtype := getattr(mask, "dtype", type(mask).__name__)) != torch.bool:
        raise TypeError(f"the mask must be bool, True at real steps, got {dtype}; valid_mask makes one")
    if values.shape[: mask.dim()] != mask.shape:
        shapes = f"a mask of shape {tuple(mask.shape)} and values of shape {tuple(values.shape)}"
        raise ValueError(f"the mask must be shaped as the leading dimensions of the values, got {shapes}")
    at_least("dim", 0 if dim is None else dim, -values.dim(), max(0, values.dim() - 1))
    mask = mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim())).expand_as(values).to(values.device)
    count = mask.sum(dim)
    if not bool(count.all()):
        raise ValueError(f"the mask leaves no real step to average over: {tuple(mask.shape)}, {int(mask.sum())} True")
    if values.is_floating_point() or values.is_complex():
        result, adds = values.dtype, torch.promote_types(values.dtype, torch.float32)
    else:  # whose sum would wrap around; Apple's GPUs have no float64
        result, adds = torch.get_default_dtype(), torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where(mask, values, 0)  # not values * mask, where nan * 0 is nan
    if adds == values.dtype:  # apart, for an exporter would write down a cast that does nothing
        return kept.sum(dim) / count
    return (kept.sum(dim, dtype=adds) / count).to(result)


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of sequences of similar length, for ``DataLoader(dataset, batch_sampler=...)``.

    Every epoch shuffles all samples, cuts them into pools, sorts each pool by length, cuts it into batches, and
    shuffles the batches. So a sample meets other companions every time, and there is never more padding than in the
    same shuffled order cut straight into batches. What does not fill a batch is chosen by the shuffle, not by length.

    The order depends on the seed and the epoch alone, not on global random state nor on the loader's workers. Each
    pass is one epoch and moves ``epoch`` on by one, so nothing need be called between epochs. To resume a training,
    store ``sampler.epoch`` and give it to ``set_epoch``. For one process: it does not split among ranks.

    Args:
        lengths: steps of each sample of the dataset, integers of at least 1.
        batch_size: samples in a batch.
        batches_per_pool: 1 is an ordinary shuffle; the larger, the less padding and the less chance in a batch.
        drop_last: leave out the samples that do not fill a batch, others in each epoch.
        seed: a non-negative integer.

    Raises:
        TypeError: the lengths are no integers, or ``drop_last`` is no bool.
        ValueError: a length or another argument is out of range, or ``drop_last`` would leave no batch.
    """

    def __init__(
        self, lengths: Lengths, batch_size: int, *, batches_per_pool: int = 50, drop_last: bool = False, seed: int = 0
    ) -> None:
        self.lengths: npt.NDArray[np.int64] = _in_range(integers(lengths)).cpu().numpy().copy()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.batches_per_pool = at_least("batches_per_pool", batches_per_pool, 1)
        require_flag("drop_last", drop_last)
        self.drop_last = drop_last
        self.seed = at_least("seed", seed, 0)
        self.epoch = 0
        if not len(self):
            size = f"{len(self.lengths)} samples are fewer than batch_size {batch_size}"
            raise ValueError(f"{size}, so drop_last=True would leave no batch; use drop_last=False or smaller batches")

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of the given epoch, counted from 0.

        Raises:
            ValueError: it is no such number.
        """
        self.epoch = at_least("epoch", epoch, 0)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the current epoch, each a list of indices; drawing the first moves on to the next epoch."""
        # A generator, since a loader with workers also calls iter() for an iterator that it never draws from.
        random = np.random.default_rng((self.seed, self.epoch))  # seed + epoch would give seed 1 the epochs of seed 0
        self.epoch += 1
        order = random.permutation(len(self.lengths))
        whole, rest = np.split(order, [len(order) // self.batch_size * self.batch_size])
        pool_size = self.batches_per_pool * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(whole), pool_size):
            pool = whole[start : start + pool_size]
            # Stable, since the default sort orders equal lengths differently on different processors.
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += pool.reshape(-1, self.batch_size).tolist()
        if len(rest) and not self.drop_last:
            batches.append(rest.tolist())
        for at in random.permutation(len(batches)):
            yield batches[at]


def _in_range(steps: Tensor, seq_len: int | None = None) -> Tensor:
    """The lengths, refused when one lies outside 1 to ``seq_len``."""
    if bool((short := steps < 1).any()):
        row, cure = int(short.nonzero()[0]), "drop empty sequences, or give each one step of padding and length 1"
        raise ValueError(f"lengths must be at least 1, got {int(steps[row])} in row {row}; {cure}")
    if seq_len is not None and bool((long := steps > seq_len).any()):
        row, cure = int(long.nonzero()[0]), "measure lengths after sequences are cut, not before"
        raise ValueError(f"lengths must be at most T = {seq_len}, got {int(steps[row])} in row {row}; {cure}")
    return steps


def steps_of(batch: Tensor, lengths: Lengths, batch_first: bool) -> tuple[int, Tensor]:
    """T of a padded batch and the lengths of its rows, refused when they do not fit it."""
    require_flag("batch_first", batch_first)
    require_tensor("the padded batch", batch)
    layout = f"{'(N, T, width)' if batch_first else '(T, N, width)'}, as batch_first={batch_first} has it"
    if batch.dim() != 3:
        raise ValueError(f"expected a padded batch of shape {layout}, got {tuple(batch.shape)}")
    rows, seq_len = (batch.shape[0], batch.shape[1]) if batch_first else (batch.shape[1], batch.shape[0])
    if (steps := integers(lengths)).numel() != rows:
        read = f"the batch of shape {tuple(batch.shape)} was read as {layout}"
        raise ValueError(f"expected one length for each of the N = {rows} rows, got {steps.numel()}; {read}")
    return seq_len, _in_range(steps, seq_len)
