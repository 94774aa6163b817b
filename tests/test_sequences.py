import itertools
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import build, calls, examples, specs
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lstm_utils import LSTMSpec, ReferenceLSTM
from lstm_utils.projection import FoldedProjection
from lstm_utils.regularization import WeightDrop
from lstm_utils.sequences import LengthBucketSampler, last_valid_step, masked_mean, run_packed, valid_mask

KINDS = (nn.LSTM, ReferenceLSTM)
FORMS = {  # the ways in which lengths come
    "list": list,
    "tuple": tuple,
    "int64": torch.tensor,
    "int32": partial(torch.tensor, dtype=torch.int32),
    "uint8": partial(torch.tensor, dtype=torch.uint8),
    "numpy": np.array,
}
kinds, forms = st.sampled_from(KINDS), st.sampled_from(sorted(FORMS))
some_lengths = st.lists(st.integers(1, 6), min_size=1, max_size=6)
extra_steps = st.integers(0, 3)  # of padding after the longest row
padded_calls = calls(specs(dropout=0.0), layouts=("unsorted",))

# Even one and the same product may differ in its last bit, since tensors start at other addresses.
assert_close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(batch, batch_first):
    """A batch (N, T, ...) as the flag has it."""
    return batch if batch_first else batch.transpose(0, 1)


class Run:
    """A padded batch of random numbers for a drawn call; everything in it is (N, T, ...), whatever the layout."""

    def __init__(self, call, extra, kind, filling=0.0):
        self.call, self.spec, self.lengths = call, call.spec, call.lengths
        self.seq_len = max(call.lengths) + extra
        self.lstm = build(call.spec, kind, dtype=torch.float64)
        shapes = call.spec.shapes(self.seq_len, len(call.lengths))
        x = normal(len(call.lengths), self.seq_len, call.spec.input_size, seed=call.seed)
        for row, length in enumerate(call.lengths):
            x[row, length:] = filling
        self.x = x.requires_grad_()
        states = (normal(*shapes.h_n, seed=call.seed + 1), normal(*shapes.c_n, seed=call.seed + 2))
        self.hx = tuple(state.requires_grad_() for state in states) if call.with_states else None

    def packed(self, lengths=None):
        lengths = self.lengths if lengths is None else lengths
        output, states = run_packed(self.lstm, laid_out(self.x, self.spec.batch_first), lengths, self.hx)
        return laid_out(output, self.spec.batch_first), states

    def alone(self):
        """Every sequence through the same module on its own, in a batch of one: [(output (T_n, ·), (h_n, c_n))]."""
        results = []
        for row, length in enumerate(self.lengths):
            x = laid_out(self.x[row : row + 1, :length], self.spec.batch_first)
            hx = None if self.hx is None else tuple(state[:, row : row + 1] for state in self.hx)
            output, (h_n, c_n) = self.lstm(x, hx)
            results.append((laid_out(output, self.spec.batch_first)[0], (h_n[:, 0], c_n[:, 0])))
        return results

    def gradients(self, output, h_n, c_n):
        """By the parameters, the input and the states, of a random weighing of everything that came out."""
        out = normal(*output.shape, seed=self.call.seed + 3)
        for row, length in enumerate(self.lengths):
            out[row, length:] = 0
        cotangents = out, normal(*h_n.shape, seed=self.call.seed + 4), normal(*c_n.shape, seed=self.call.seed + 5)
        leaves = {"x": self.x} | dict(self.lstm.named_parameters()) | dict(zip("hc", self.hx or (), strict=False))
        gradients = torch.autograd.grad((output, h_n, c_n), tuple(leaves.values()), cotangents)
        return dict(zip(leaves, gradients, strict=True))


# Packed runs -----------------------------------------------------------------------------------------------------


@examples["many"]
@given(call=padded_calls, extra=extra_steps, kind=kinds, form=forms)
def test_a_packed_run_equals_every_sequence_alone(call, extra, kind, form):
    run = Run(call, extra, kind)
    output, (h_n, c_n) = run.packed(FORMS[form](call.lengths))
    alone = run.alone()
    expected = pad_sequence([steps for steps, _ in alone], batch_first=True)
    expected = nn.functional.pad(expected, (0, 0, 0, run.seq_len - expected.shape[1]))
    finals = [torch.stack(states, dim=1) for states in zip(*(states for _, states in alone), strict=True)]
    assert_close((output, h_n, c_n), (expected, *finals))
    assert output.shape[:2] == (len(call.lengths), run.seq_len)
    assert_close(run.gradients(output, h_n, c_n), run.gradients(expected, *finals))


@examples["some"]
@given(call=padded_calls, extra=extra_steps, kind=kinds)
def test_padding_is_never_read_and_comes_out_as_zeros(call, extra, kind):
    run = Run(call, extra, kind, filling=torch.nan)
    output, (h_n, c_n) = run.packed()
    real = valid_mask(call.lengths, run.seq_len, batch_first=True)
    assert torch.equal(output[~real], torch.zeros_like(output[~real]))
    assert output.isfinite().all()
    gradients = run.gradients(output, h_n, c_n)
    assert torch.equal(gradients["x"][~real], torch.zeros_like(gradients["x"][~real]))
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("wrapper", [FoldedProjection, WeightDrop])
def test_a_wrapper_takes_the_states_of_its_lstm(wrapper):
    lstm = nn.LSTM(2, 4, 2, bidirectional=True, proj_size=3, batch_first=True, dtype=torch.float64).eval()
    x, hx, lengths = normal(3, 5, 2), (normal(4, 3, 3), normal(4, 3, 4)), [5, 2, 1]
    wrapped = wrapper(lstm).eval()
    assert_close(run_packed(wrapped, x, lengths, hx), run_packed(lstm, x, lengths, hx))
    with pytest.raises(ValueError, match=r"h_0 must have shape .*, got \(4, 2, 3\)"):
        run_packed(wrapped, x, lengths, (hx[0][:, :2], hx[1]))


@examples["some"]
@given(call=padded_calls, kind=kinds, order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(call, kind, order):
    run = Run(call, 1, kind)
    rows = list(range(len(call.lengths)))
    order.shuffle(rows)
    output, states = run.packed()
    run.x, run.lengths = run.x[rows], [call.lengths[row] for row in rows]
    run.hx = None if run.hx is None else tuple(state[:, rows] for state in run.hx)
    shuffled, shuffled_states = run.packed()
    assert_close((shuffled, *shuffled_states), (output[rows], *(state[:, rows] for state in states)))


# Last steps ------------------------------------------------------------------------------------------------------


@examples["many"]
@given(call=padded_calls, extra=extra_steps, kind=kinds, form=forms)
def test_the_last_valid_step_of_a_packed_run_is_its_final_state(call, extra, kind, form):
    run, two = Run(call, extra, kind), call.spec.bidirectional
    output, (h_n, _) = run.packed()
    layout = laid_out(output, call.spec.batch_first)
    flags = {"batch_first": call.spec.batch_first, "bidirectional": two}
    last = last_valid_step(layout, FORMS[form](call.lengths), **flags)
    assert torch.equal(last, torch.cat([h_n[-2], h_n[-1]], dim=1) if two else h_n[-1])


@examples["some"]
@given(call=padded_calls, extra=extra_steps)
def test_the_forward_half_is_right_without_packing_too(call, extra):
    run = Run(call, extra, nn.LSTM)
    x = laid_out(run.x, call.spec.batch_first)
    assume(call.spec.num_layers == 1 or not call.spec.bidirectional)  # else layer 1 reads layer 0's reverse half
    output, _ = run.lstm(x, run.hx)
    _, (h_n, _) = run.packed()
    flags = {"batch_first": call.spec.batch_first, "bidirectional": call.spec.bidirectional}
    forward = last_valid_step(output, call.lengths, **flags)[:, : h_n.shape[2]]
    assert_close(forward, h_n[-2] if call.spec.bidirectional else h_n[-1])


# Masks and masked means ------------------------------------------------------------------------------------------


@examples["some"]
@given(lengths=some_lengths, extra=extra_steps, batch_first=st.booleans(), form=forms)
def test_a_mask_is_true_at_the_real_steps(lengths, extra, batch_first, form):
    seq_len = max(lengths) + extra
    expected = [[t < length for t in range(seq_len)] for length in lengths]
    mask = valid_mask(FORMS[form](lengths), seq_len, batch_first=batch_first)
    assert mask.dtype == torch.bool
    assert torch.equal(laid_out(mask, batch_first), torch.tensor(expected))
    assert valid_mask(lengths, batch_first=True).shape == (len(lengths), max(lengths))


@st.composite
def masked_values(draw):
    """Values (N, T, ...), the lengths of the rows, and what stands in the padding."""
    lengths = draw(some_lengths)
    more = draw(st.lists(st.integers(1, 3), max_size=2))
    values = normal(len(lengths), max(lengths) + draw(extra_steps), *more, seed=draw(st.integers(0, 2**32)))
    filling = draw(st.sampled_from([0.0, 7.5, torch.nan, torch.inf, -torch.inf]))
    for row, length in enumerate(lengths):
        values[row, length:] = filling
    return values.requires_grad_(), lengths


@examples["many"]
@given(drawn=masked_values(), batch_first=st.booleans())
def test_a_masked_mean_is_that_of_the_sequences_one_by_one(drawn, batch_first):
    values, lengths = drawn
    mask = valid_mask(lengths, values.shape[1], batch_first=batch_first)
    alone = [row[:length] for row, length in zip(values, lengths, strict=True)]
    expected = torch.cat(alone).sum(dim=0) / sum(lengths)
    got = masked_mean(laid_out(values, batch_first), mask)
    assert_close(got, expected.mean())
    (gradient,) = torch.autograd.grad(got, values)
    assert_close(gradient, torch.autograd.grad(expected.mean(), values)[0])
    real = valid_mask(lengths, values.shape[1], batch_first=True)
    assert torch.equal(gradient[~real], torch.zeros_like(gradient[~real]))
    pooled = masked_mean(laid_out(values, batch_first), mask, dim=1 if batch_first else 0)
    assert_close(pooled, torch.stack([row.mean(dim=0) for row in alone]))


@examples["some"]
@given(drawn=masked_values())
def test_a_masked_loss_trains_as_if_each_sequence_came_alone(drawn):
    targets, lengths = drawn
    targets = targets.detach().reshape(*targets.shape[:2], -1)
    lstm = nn.LSTM(2, targets.shape[2], batch_first=True, dtype=torch.float64)
    x = normal(*targets.shape[:2], 2)
    mask = valid_mask(lengths, targets.shape[1], batch_first=True)
    loss = masked_mean((run_packed(lstm, x, lengths)[0] - targets).square(), mask)
    rows = zip(x, targets, lengths, strict=True)
    losses = [(lstm(row[None, :length])[0] - target[:length]).square().sum() for row, target, length in rows]
    alone = sum(losses) / (sum(lengths) * targets.shape[2])
    assert_close(loss, alone)
    parameters = tuple(lstm.parameters())
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters))


def test_counts_and_hits_can_be_averaged_too():
    right = torch.tensor([[True, False, True], [True, True, True]])
    assert masked_mean(right, valid_mask([2, 1], 3, batch_first=True)).item() == pytest.approx(2 / 3)
    assert masked_mean(right.float(), valid_mask([2, 1], 3, batch_first=True)).dtype == torch.float32


def test_another_default_device_moves_nothing():
    lengths, output = torch.tensor([3, 1]), normal(2, 3, 4)
    with torch.device("meta"):
        masks = [valid_mask(lengths, seq_len, batch_first=True) for seq_len in (None, 3)]
        last = last_valid_step(output, lengths, batch_first=True, bidirectional=False)
    assert [mask.tolist() for mask in masks] == [[[True, True, True], [True, False, False]]] * 2
    assert torch.equal(last, output[[0, 1], [2, 0]])


def test_one_sequence_alone_has_a_mean():
    assert masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])).item() == 1.5
    with pytest.raises(ValueError, match="dim must be an integer from -1 to 0, got 1"):
        masked_mean(torch.zeros(3), torch.ones(3, dtype=torch.bool), 1)


@pytest.mark.parametrize("dim", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_a_mean_has_the_dtype_of_its_values_and_a_sum_that_it_would_not_hold(dtype, dim):
    values = torch.full((1, 4000), 300, dtype=dtype)  # 1.2e6 together; float16 ends at 65504, bfloat16 has 8 bits
    values[0, ::2] = 100j if dtype.is_complex else 100
    mean = masked_mean(values, torch.ones(1, 4000, dtype=torch.bool), dim)
    assert mean.dtype == dtype
    assert mean.shape == (() if dim is None else (1,))
    assert mean.item() == pytest.approx(150 + 50j if dtype.is_complex else 200, rel=1e-6)


@pytest.mark.parametrize("dim", [None, 1])
def test_integers_are_added_up_exactly_whatever_their_own_dtype_holds(dim):
    large = torch.tensor([[2**24 + 1, -(2**24)], [1, 2]])  # float32 has no 2**24 + 1
    small = torch.tensor([[200, 255], [0, 1]], dtype=torch.uint8)
    mask = torch.ones(2, 2, dtype=torch.bool)
    for values, rows in ((large, [0.5, 1.5]), (small, [227.5, 0.5])):
        mean = masked_mean(values, mask, dim)
        assert (mean.dtype, mean.tolist()) == (torch.float32, sum(rows) / 2 if dim is None else rows)


# Bucketed batches ------------------------------------------------------------------------------------------------


@st.composite
def samplers(draw, **fixed):
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=80))
    drop_last = draw(st.booleans())
    arguments = {
        "lengths": lengths,
        "batch_size": draw(st.integers(1, len(lengths) if drop_last else 90)),
        "batches_per_pool": draw(st.integers(1, 9)),
        "drop_last": drop_last,
        "seed": draw(st.integers(0, 2**32)),
    }
    return arguments | fixed


@examples["some"]
@given(arguments=samplers(), form=forms)
def test_an_epoch_has_every_sample_once(arguments, form):
    number, size = len(arguments["lengths"]), arguments["batch_size"]
    sampler = LengthBucketSampler(**arguments | {"lengths": FORMS[form](arguments["lengths"])})
    batches = list(sampler)
    indices = sorted(itertools.chain(*batches))
    assert len(batches) == len(sampler) == (number // size if arguments["drop_last"] else -(-number // size))
    assert {type(index) for index in indices} == {int}
    if not arguments["drop_last"]:
        assert indices == list(range(number))
    else:
        assert len(set(indices)) == len(indices) == number // size * size
        assert set(indices) <= set(range(number))
    assert sum(len(batch) != size for batch in batches) == (number % size > 0 and not arguments["drop_last"])


@examples["some"]
@given(arguments=samplers(), epoch=st.integers(0, 5))
def test_seed_and_epoch_alone_decide_the_order(arguments, epoch):
    through, resumed = LengthBucketSampler(**arguments), LengthBucketSampler(**arguments)
    for _ in range(epoch):
        list(through)
    torch.manual_seed(epoch)  # nothing global matters
    np.random.seed(epoch)  # noqa: NPY002
    assert through.epoch == epoch
    resumed.set_epoch(through.epoch)
    assert list(resumed) == list(through)
    assert resumed.epoch == epoch + 1
    through.set_epoch(0)
    resumed.set_epoch(0)
    assert list(resumed) == list(through)


def test_lengths_changed_later_change_no_order():
    lengths = torch.arange(1, 41)
    sampler, expected = LengthBucketSampler(lengths, 4), list(LengthBucketSampler(lengths, 4))
    lengths.fill_(1)
    assert list(sampler) == expected


def test_equal_lengths_keep_the_shuffled_order():
    shuffled = list(LengthBucketSampler([7] * 40, 4, batches_per_pool=1))
    assert sorted(LengthBucketSampler([7] * 40, 4, batches_per_pool=10)) == sorted(shuffled)


def test_samples_of_equal_length_keep_the_shuffled_order_among_others():
    lengths = [1 + index % 3 for index in range(400)]
    (shuffled,) = LengthBucketSampler([7] * 400, 400)
    (batch,) = LengthBucketSampler(lengths, 400)
    assert batch == sorted(shuffled, key=lengths.__getitem__)


def test_epochs_and_seeds_differ():
    lengths = torch.randint(1, 30, (200,)).tolist()
    orders = [tuple(map(tuple, LengthBucketSampler(lengths, 8, seed=seed))) for seed in range(5)]
    sampler = LengthBucketSampler(lengths, 8, seed=0)
    orders += [tuple(map(tuple, sampler)) for _ in range(5)]
    assert orders[0] == orders[5]
    assert len(set(orders)) == 9  # seed 1 in epoch 0 is not seed 0 in epoch 1
    companions = [{frozenset(batch) for batch in order} for order in orders]
    assert len(companions[0] & companions[1]) < len(companions[0]) / 2


def steps_run(batches, lengths):
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)


def spread(batches, lengths):
    return sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches)


@examples["many"]
@given(arguments=samplers(), epoch=st.integers(0, 3))
def test_buckets_never_add_padding_nor_spread(arguments, epoch):
    # With pools of one batch the sampler is an ordinary shuffle, and the seed gives it the same order.
    bucketed, shuffled = LengthBucketSampler(**arguments), LengthBucketSampler(**arguments | {"batches_per_pool": 1})
    for sampler in (bucketed, shuffled):
        sampler.set_epoch(epoch)
    bucketed, shuffled, lengths = list(bucketed), list(shuffled), arguments["lengths"]
    assert sorted(itertools.chain(*bucketed)) == sorted(itertools.chain(*shuffled))
    assert steps_run(bucketed, lengths) <= steps_run(shuffled, lengths)
    assert spread(bucketed, lengths) <= spread(shuffled, lengths)


@examples["some"]
@given(size=st.integers(1, 6), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_one_pool_of_whole_batches_sorts_everything(size, lengths):
    lengths = lengths * size
    batches = list(LengthBucketSampler(lengths, size))
    ordered = sorted(lengths)
    cut = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    assert sorted(sorted(lengths[index] for index in batch) for batch in batches) == sorted(cut)


def test_the_length_of_a_sample_does_not_decide_whether_it_is_dropped():
    dropped = []
    for seed in range(300):
        sampler = LengthBucketSampler(range(1, 8), 3, drop_last=True, seed=seed)
        dropped += set(range(7)) - set(itertools.chain(*sampler))
    counts = np.bincount(dropped, minlength=7)
    assert counts.sum() == 300
    assert counts.min() > 300 / 7 / 2


def test_batches_of_short_and_long_samples_come_in_any_order():
    lengths = list(range(1, 101))
    longest = [max(range(20), key=lambda at, b=batches: max(b[at])) for batches in map(list, epochs_of(lengths, 40))]
    assert len(set(longest)) > 10


def epochs_of(lengths, number):
    sampler = LengthBucketSampler(lengths, 5)
    return [list(sampler) for _ in range(number)]


def test_buckets_are_those_of_the_first_seed_and_of_fifty_batches_if_nothing_is_said():
    lengths = torch.randint(1, 1000, (500,), generator=torch.Generator().manual_seed(0))
    expected = list(LengthBucketSampler(lengths, 4, batches_per_pool=50, drop_last=False, seed=0))
    assert list(LengthBucketSampler(lengths, 4)) == expected
    assert list(LengthBucketSampler(lengths, 4, batches_per_pool=51)) != expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and later: the process has threads
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_a_loader_yields_the_sampler_s_batches(workers):
    lengths = torch.randint(1, 9, (23,)).tolist()
    dataset = [torch.full((length,), index) for index, length in enumerate(lengths)]
    loader = DataLoader(
        dataset,
        batch_sampler=LengthBucketSampler(lengths, 4, seed=3),
        collate_fn=partial(pad_sequence, batch_first=True, padding_value=-1),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    expected = LengthBucketSampler(lengths, 4, seed=3)
    assert len(loader) == 6
    for _ in range(3):  # epochs
        batches = [batch[:, 0].tolist() for batch in loader]
        assert batches == list(expected)


# Refusals --------------------------------------------------------------------------------------------------------

BATCH = torch.zeros(3, 5, 2)  # (N, T, I)
TAKERS = {
    "run_packed": lambda lengths: run_packed(nn.LSTM(2, 4, batch_first=True), BATCH, lengths),
    "last_valid_step": lambda lengths: last_valid_step(BATCH, lengths, batch_first=True, bidirectional=False),
    "valid_mask": lambda lengths: valid_mask(lengths, 5, batch_first=True),
    "LengthBucketSampler": lambda lengths: LengthBucketSampler(lengths, 2),
}
ZERO = r"at least 1, got 0 in row 1; drop empty sequences, or give each one step of padding and length 1"
BAD_LENGTHS = {
    "zero": ([3, 0, 5], ValueError, ZERO),
    "negative": (torch.tensor([3, 2, -4]), ValueError, "at least 1, got -4 in row 2; drop"),
    "floats": ([3.0, 2.5, 1.0], TypeError, "must be integers, got torch.float32; convert them where"),
    "complex": (torch.ones(3, dtype=torch.complex64), TypeError, "must be integers, got torch.complex64"),
    "bool": ([True, True, True], TypeError, "must be integers, got torch.bool"),
    "text": (["3", "2", "1"], TypeError, "must be integers, one for each sequence, got a list: .*str"),
    "ragged": ([[1], [2, 3], [1]], TypeError, "one for each sequence, got a list: expected sequence of length 1"),
    "None": (None, TypeError, "one for each sequence, got a NoneType: "),
    "scalar": (3, ValueError, r"one integer for each sequence, got the shape \(\)"),
    "a mask": (torch.ones(3, 5, dtype=torch.int64), ValueError, r"each sequence, got the shape \(3, 5\)"),
    "none at all": ([], ValueError, r"one integer for each sequence, got the shape \(0,\)"),
}


@pytest.mark.parametrize(("lengths", "error", "message"), BAD_LENGTHS.values(), ids=BAD_LENGTHS)
@pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS)
def test_what_cannot_be_lengths_is_refused(taker, lengths, error, message):
    with pytest.raises(error, match=message):
        taker(lengths)


@pytest.mark.parametrize("taker", ["run_packed", "last_valid_step", "valid_mask"])
def test_lengths_over_the_padded_steps_are_refused(taker):
    with pytest.raises(ValueError, match=r"at most T = 5, got 6 in row 1; measure lengths after sequences are cut"):
        TAKERS[taker]([5, 6, 1])


@pytest.mark.parametrize("taker", ["run_packed", "last_valid_step"])
@pytest.mark.parametrize("lengths", [[1], [5, 4, 3, 2], [9, 9]])
def test_a_wrong_number_of_lengths_is_refused(taker, lengths):
    message = f"one length for each of the N = 3 rows, got {len(lengths)}; the batch of shape (3, 5, 2) was read as "
    with pytest.raises(ValueError, match=re.escape(message + "(N, T, width), as batch_first=True has it")):
        TAKERS[taker](lengths)


def test_a_batch_in_the_other_layout_is_refused():
    message = r"N = 5 rows, got 3; the batch of shape \(3, 5, 2\) was read as \(T, N, width\), as batch_first=False has"
    with pytest.raises(ValueError, match=message):
        run_packed(nn.LSTM(2, 4), BATCH, [5, 4, 3])


@pytest.mark.parametrize("shape", [(5, 2), (1, 3, 5, 2)])
def test_a_batch_that_is_not_3_d_is_refused(shape):
    message = rf"a padded batch of shape \(T, N, width\), .*got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        run_packed(nn.LSTM(2, 4), torch.zeros(shape), [5])
    with pytest.raises(ValueError, match=message):
        last_valid_step(torch.zeros(shape), [5], batch_first=False, bidirectional=False)


def states(*shapes):
    return tuple(torch.zeros(shape) for shape in shapes)


BAD_STATES = {
    "h_0 of a larger batch": (states((2, 4, 4), (2, 3, 4)), "h_0", (2, 4, 4)),
    "c_0 of a larger batch": (states((2, 3, 4), (2, 4, 4)), "c_0", (2, 4, 4)),
    "h_0 of a smaller batch": (states((2, 2, 4), (2, 2, 4)), "h_0", (2, 2, 4)),
    "batch first": (states((3, 2, 4), (3, 2, 4)), "h_0", (3, 2, 4)),
    "2-D": (states((3, 4), (3, 4)), "h_0", (3, 4)),
    "2-D, N columns": (states((2, 3), (2, 3)), "h_0", (2, 3)),
    "h_0 alone": (torch.zeros(2, 3, 4), "h_0", (3, 4)),
}


@pytest.mark.parametrize(("hx", "name", "shape"), BAD_STATES.values(), ids=BAD_STATES)
def test_states_of_another_batch_are_refused(hx, name, shape):
    lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True)
    message = f"{name} must have shape (D·layers, 3, width), whatever batch_first says, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_packed(lstm, BATCH, [5, 2, 1], hx)


def test_an_odd_width_has_no_two_halves():
    with pytest.raises(ValueError, match="two directions have an even width together, got an output of width 3"):
        last_valid_step(torch.zeros(2, 5, 3), [5, 1], batch_first=True, bidirectional=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_mask_that_is_not_bool_is_refused(dtype):
    with pytest.raises(TypeError, match="must be bool, True at real steps, got list; valid_mask makes one"):
        masked_mean(torch.zeros(2, 3), [[True] * 3] * 2)
    with pytest.raises(TypeError, match=f"must be bool, True at real steps, got {dtype}; valid_mask makes one"):
        masked_mean(torch.zeros(2, 3), torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 4, 3)])
def test_a_mask_that_does_not_fit_is_refused(shape):
    message = f"a mask of shape (2, 3) and values of shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        masked_mean(torch.zeros(shape), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize(("mask", "dim"), [([[False, False]], None), ([[True, True], [False, False]], 1)])
def test_a_mask_without_a_real_step_is_refused(mask, dim):
    mask = torch.tensor(mask)
    message = f"leaves no real step to average over: {tuple(mask.shape)}, {int(mask.sum())} True"
    with pytest.raises(ValueError, match=re.escape(message)):
        masked_mean(torch.zeros(mask.shape), mask, dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batches_per_pool": 0}, "batches_per_pool must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        (
            {"batch_size": 4, "drop_last": True},
            "3 samples are fewer than batch_size 4, so drop_last=True would leave no batch; use drop_last=False",
        ),
    ],
)
def test_what_a_sampler_cannot_use_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LengthBucketSampler(**{"lengths": [1, 2, 3], "batch_size": 2} | arguments)


def test_an_epoch_is_a_number_from_0():
    with pytest.raises(ValueError, match="epoch must be an integer of at least 0, got -1"):
        LengthBucketSampler([1, 2], 2).set_epoch(-1)
    sampler = LengthBucketSampler([1, 2], np.int64(2))
    sampler.set_epoch(np.int64(3))
    assert sampler.epoch == 3


# What torch does with the same mistakes, which is why the helpers check ------------------------------------------


def test_a_packed_lstm_takes_states_of_a_larger_batch():
    """When this fails, run_packed no longer needs to look at the states."""
    lstm, x = nn.LSTM(2, 4, batch_first=True), BATCH
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 2, 1], True, enforce_sorted=False)
    assert lstm(packed, states((1, 7, 4), (1, 7, 4)))[1][0].shape == (1, 3, 4)


def test_float32_runs_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = LSTMSpec(2, 4, 2, bidirectional=True, batch_first=True)
        run_packed(build(spec), BATCH, [5, 2, 1])
