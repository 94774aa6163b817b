"""The classifier: padding, pooling against a loop, sizes. The residual stack: against nn.LSTM, and written out."""

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import calls, specs
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_utils.diagnose import diagnose
from lstm_utils.gradients import gradient_norms
from lstm_utils.initialization import forget_biases
from lstm_utils.models import ResidualLSTM, SequenceClassifier, pool
from lstm_utils.onnx_export import export_onnx
from lstm_utils.sequences import run_packed
from lstm_utils.spec import LSTMSpec

some = settings(max_examples=40, deadline=None, derandomize=True)
POOLINGS = ["last", "mean", "max"]


def words(lengths, num_symbols=9, seed=0):
    """Symbols 1 to num_symbols - 1, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(1, num_symbols, (len(lengths), max(lengths)), generator=generator)
    steps = torch.tensor(lengths)
    return symbols * (torch.arange(max(lengths)) < steps[:, None]), steps


def build(pooling="max", **how):
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 6} | how
    return SequenceClassifier(9, 3, pooling=pooling, **sizes).double().eval()


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(POOLINGS),
    st.booleans(),
    st.integers(1, 2),
    st.sampled_from([0, 5]),
)
@some
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_word_has_the_same_scores_alone_and_in_any_batch(lengths, pooling, bidirectional, num_layers, proj_size):
    model = build(pooling, bidirectional=bidirectional, num_layers=num_layers, proj_size=proj_size)
    symbols, steps = words(lengths)
    with torch.no_grad():
        scores = model(symbols, steps)
        for row, length in enumerate(lengths):
            alone = model(symbols[row : row + 1, :length], steps[row : row + 1])
            torch.testing.assert_close(scores[row : row + 1], alone)
        other = torch.where(symbols == 0, 7, symbols)
        torch.testing.assert_close(model(other, steps), scores)
        wider = nn.functional.pad(symbols, (0, 3), value=5)
        torch.testing.assert_close(model(wider, steps), scores)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
@some
def test_pooling_is_what_a_loop_over_the_rows_gives(lengths, bidirectional):
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(len(lengths), max(lengths) + 1, 8, generator=generator) - 5  # negative, so that no 0 wins
    for how in POOLINGS:
        found = pool(output, torch.tensor(lengths), how, bidirectional=bidirectional)
        rows = []
        for row, length in zip(output, lengths, strict=True):
            real = row[:length]
            last = torch.cat([real[-1, :4], real[0, 4:]]) if bidirectional else real[-1]
            rows.append({"last": last, "mean": real.mean(0), "max": real.amax(0)}[how])
        torch.testing.assert_close(found, torch.stack(rows))


@pytest.mark.parametrize("how", POOLINGS)
def test_no_gradient_and_no_nan_comes_out_of_the_padding(how):
    output = torch.randn(2, 4, 6, requires_grad=True)
    spoiled = torch.where(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])[..., None] == 1, torch.nan, output)
    pooled = pool(spoiled, torch.tensor([4, 2]), how, bidirectional=True)
    (gradient,) = torch.autograd.grad(pooled.sum(), output)
    assert pooled.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[1, 2:].eq(0).all()
    assert gradient[1, :2].ne(0).any()


def test_the_sizes_are_those_that_were_asked_for():
    model = build(hidden_size=10, num_layers=2, proj_size=6, embedding_size=5, dropout=0.3)
    assert LSTMSpec.from_module(model.lstm) == LSTMSpec(5, 10, 2, True, True, 0.3, True, 6)
    assert (model.embedding.num_embeddings, model.readout.in_features, model.readout.out_features) == (9, 12, 3)
    assert model.embedding.weight[0].eq(0).all()
    assert all(bias.eq(1).all() for bias in forget_biases(model.lstm).values())


def test_by_default_it_reads_both_ways_and_keeps_the_last_steps():
    model = SequenceClassifier(9, 3)
    assert LSTMSpec.from_module(model.lstm) == LSTMSpec(32, 64, batch_first=True, bidirectional=True)
    assert (model.pooling, model.dropout.p) == ("last", 0)


def test_one_symbol_and_one_class_are_enough():
    assert SequenceClassifier(1, 1)(torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 1])).shape == (2, 1)


def test_the_steps_are_the_output_of_the_lstm_with_zeros_behind():
    model = build(bidirectional=False)
    symbols, steps = words([3, 5])
    output = model.steps(symbols, steps)
    assert output.shape == (2, 5, 6)
    assert output[0, 3:].eq(0).all()
    torch.testing.assert_close(output[1:], model.lstm(model.embedding(symbols[1:]))[0])


@pytest.mark.filterwarnings("error")
def test_dropout_acts_in_training_alone_and_warns_of_nothing():
    model = build(dropout=0.5)
    symbols, steps = words([4, 4, 2])
    assert torch.equal(model(symbols, steps), model(symbols, steps))
    model.train()
    assert not torch.equal(model(symbols, steps), model(symbols, steps))
    assert model.lstm.dropout == 0
    assert build(dropout=0.5, num_layers=2).lstm.dropout == 0.5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_diagnosis_finds_nothing(pooling):
    model = build(pooling).float()
    symbols, steps = words([5, 3, 2, 4, 5, 1])
    found = diagnose(model, (symbols, steps), lengths=steps)
    assert not found.findings, str(found)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("how", [{}, {"num_layers": 2}, {"bidirectional": False}], ids=["one", "two layers", "one way"])
def test_an_exported_model_takes_any_batch_and_any_lengths(pooling, how, tmp_path):
    model = build(pooling, **how).float()
    report = export_onnx(
        model, words([5, 3, 2]), tmp_path / "a.onnx", dynamic=[("N", "T"), "lengths"], output_names=["scores"]
    )
    assert dict(report.inputs) == {"symbols": ("N", "T"), "lengths": ("N",)}
    session = onnxruntime.InferenceSession(report.path)
    for lengths in ([4], [1, 7, 7, 2], [3, 3]):
        symbols, steps = words(lengths, seed=1)
        (found,) = session.run(None, {"symbols": symbols.numpy(), "lengths": steps.numpy()})
        torch.testing.assert_close(torch.tensor(found), model(symbols, steps))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of 'last', 'mean', 'max', got 'sum'"):
        build("sum")
    with pytest.raises(ValueError, match="how must be one of 'last', 'mean', 'max', got 'first'"):
        pool(torch.zeros(1, 1, 2), torch.tensor([1]), "first", bidirectional=False)
    odd = torch.zeros(1, 1, 3)
    assert pool(odd, torch.tensor([1]), "last", bidirectional=False).shape == (1, 3)
    with pytest.raises(ValueError, match="even"):
        pool(odd, torch.tensor([1]), "last", bidirectional=True)
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        build(hidden_size=0)
    with pytest.raises(ValueError, match="at most T = 3"):
        build()(torch.ones(1, 3, dtype=torch.long), torch.tensor([4]))


# --- ResidualLSTM ----------------------------------------------------------------------------------------------------

NORMS = ["none", "pre", "post"]
kinds = st.fixed_dictionaries({"residual": st.booleans(), "norm": st.sampled_from(NORMS)})
# Two features at least: a single one cannot be normalized.
wide = specs(dropout=0.0).filter(lambda spec: spec.num_directions * spec.hidden_width > 1)


def stack_of(spec, **how):
    torch.manual_seed(0)
    return ResidualLSTM(**spec.as_dict(), dtype=torch.float64, **how)


@given(calls(spec=specs(dropout=0.0)))
@some
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_without_connections_it_is_an_nn_lstm_with_the_same_weights(call):
    lstm = call.spec.build(dtype=torch.float64)
    stack = ResidualLSTM.from_lstm(lstm, residual=False)
    expected, found = call.run(lstm), call.run(stack)
    for number, layer in enumerate(stack.layers):
        for name in layer.state_dict():
            was = found.pop(f"gradient of layers.{number}.{name}")
            found[f"gradient of {name.replace('_l0', f'_l{number}')}"] = was
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, PackedSequence):
            assert torch.equal(found[name].batch_sizes, value.batch_sizes)
            value, found[name] = value.data, found[name].data
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)


@given(calls(spec=wide, layouts=("sorted", "unsorted")), kinds)
@some
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_packed_sequence_comes_out_as_if_it_were_alone(call, how):
    stack = stack_of(call.spec, **how)
    x, hx = call.tensors()
    output, (h_n, c_n) = run_packed(stack, x, call.lengths, hx)
    for row, length in enumerate(call.lengths):
        alone = (x[row] if call.spec.batch_first else x[:, row])[:length]
        state = None if hx is None else tuple(part[:, row] for part in hx)
        expected, (h, c) = stack(alone, state)
        batch_first = output if call.spec.batch_first else output.transpose(0, 1)
        torch.testing.assert_close(batch_first[row, :length], expected)
        assert batch_first[row, length:].eq(0).all()
        torch.testing.assert_close((h_n[:, row], c_n[:, row]), (h, c))


@given(calls(spec=wide, layouts=("unbatched", "batched")), kinds)
@some
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_shapes_are_those_of_nn_lstm_and_gradients_are_finite_and_reach_the_input(call, how):
    stack = stack_of(call.spec, **how)
    found = call.run(stack)
    shapes = call.spec.shapes(max(call.lengths), call.batch_size)
    assert all(found[name].shape == getattr(shapes, name) for name in ("output", "h_n", "c_n"))
    assert all(found[f"gradient of {name}"].isfinite().all() for name, _ in stack.named_parameters())
    assert found["gradient of input"].ne(0).any()


def written_out(stack, x):
    """The output as the docstring has it, (T, N, I) → (T, N, D·H_out)."""
    for number, layer in enumerate(stack.layers):
        below = x
        read = stack.norms[number - 1](x) if stack.norm == "pre" and number else x
        x = layer(read)[0]
        x = below + x if stack.residual and number else x
        x = stack.norms[number](x) if stack.norm == "post" else x
    return x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [True, False])
def test_the_output_is_the_sum_that_the_docstring_writes(norm, residual):
    stack = stack_of(LSTMSpec(3, 4, 3, bidirectional=True), residual=residual, norm=norm)
    with torch.no_grad():
        for part in stack.norms:
            part.weight.normal_()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(stack(x)[0], written_out(stack, x))
    assert len(stack.norms) == {"none": 0, "pre": 2, "post": 3}[norm]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_states_carried_from_chunk_to_chunk_give_the_whole(norm, cut):
    stack = stack_of(LSTMSpec(3, 4, 3, batch_first=True, proj_size=2), norm=norm)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    whole, final = stack(x)
    first, states = stack(x[:, :cut])
    second, last = stack(x[:, cut:], states)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(last, final)


def test_the_gradient_reaches_the_bottom_of_a_deep_stack_by_its_connections():
    reached = {}
    for residual in (True, False):
        stack = stack_of(LSTMSpec(3, 8, 12), residual=residual)
        stack(torch.randn(5, 2, 3, dtype=torch.float64))[0].square().sum().backward()
        norms = gradient_norms(stack)
        reached[residual] = norms["layers.0.weight_hh_l0"] / norms["layers.11.weight_hh_l0"]
    assert reached[True] > 0.1
    assert reached[False] < 1e-4


def test_dropout_acts_below_the_top_in_training_and_leaves_the_input_of_a_layer_in_its_sum():
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    stack = stack_of(LSTMSpec(3, 4, 3, dropout=1.0))
    top = stack.layers[2]
    torch.testing.assert_close(stack(x)[0], top(torch.zeros(5, 2, 4, dtype=torch.float64))[0])
    torch.testing.assert_close(stack.eval()(x)[0], written_out(stack, x))
    single = stack_of(LSTMSpec(3, 4, 1, dropout=0.0))
    assert torch.equal(single(x)[0], single(x)[0])
    packed = stack_of(LSTMSpec(3, 4, 3, dropout=0.5))
    drawn = [run_packed(packed, x, [5, 3])[0] for _ in range(2)]
    assert not torch.equal(*drawn)


def test_by_default_it_is_built_as_nn_lstm_and_adds():
    for stack in (ResidualLSTM(3, 4), ResidualLSTM.from_lstm(nn.LSTM(3, 4))):
        assert (stack.spec, stack.residual, stack.norm) == (LSTMSpec(3, 4), True, "none")


@pytest.mark.parametrize(
    "stack",
    [
        lambda: ResidualLSTM(3, 2, 2, norm="post", device="meta", dtype=torch.float16),  # two can be normalized
        lambda: ResidualLSTM.from_lstm(nn.LSTM(3, 2, 2, device="meta", dtype=torch.float16), norm="pre"),
    ],
    ids=["asked for", "that of an LSTM"],
)
def test_every_parameter_is_on_one_device_and_of_one_dtype(stack):
    assert {(p.device.type, p.dtype) for p in stack().parameters()} == {("meta", torch.float16)}


def test_weights_device_and_mode_come_from_the_lstm():
    lstm = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.25, bidirectional=True, dtype=torch.float64).eval()
    stack = ResidualLSTM.from_lstm(lstm, norm="post")
    assert not stack.training
    assert LSTMSpec.from_module(stack) == stack.spec == LSTMSpec.from_module(lstm)
    assert stack.norms[0].weight.dtype == torch.float64
    before = lstm.weight_ih_l0.clone()
    with torch.no_grad():
        stack.layers[0].weight_ih_l0.zero_()
    assert torch.equal(lstm.weight_ih_l0, before)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"norm": "batch"}, ValueError, "norm must be one of 'none', 'pre', 'post', got 'batch'"),
        ({"residual": "pre"}, TypeError, "residual must be True or False, got 'pre' of type str"),
        ({"hidden_size": 1, "norm": "pre"}, ValueError, "^norm='pre' needs an output of at least 2 features"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(how, error, message):
    with pytest.raises(error, match=message):
        ResidualLSTM(**{"input_size": 3, "hidden_size": 4} | how)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_states_of_another_shape_are_refused():
    stack = ResidualLSTM(3, 4, 2, batch_first=True, proj_size=2)
    x, h_0, c_0 = torch.zeros(5, 7, 3), torch.zeros(2, 5, 2), torch.zeros(2, 5, 4)
    stack(x, (h_0, c_0))
    with pytest.raises(
        ValueError, match=r"h_0 must have shape \(2, 5, 2\), whatever batch_first says, got \(1, 5, 2\)"
    ):
        stack(x, (h_0[:1], c_0))
    with pytest.raises(ValueError, match=r"c_0 must have shape \(2, 4\), whatever batch_first says, got \(2, 5, 4\)"):
        stack(x[0], (h_0[:, 0], c_0))
    with pytest.raises(
        ValueError, match=r"c_0 must have shape \(2, 5, 4\), whatever batch_first says, got \(4, 5, 4\)"
    ):
        stack(pack_padded_sequence(x, torch.full((5,), 7), batch_first=True), (h_0, c_0.repeat(2, 1, 1)))
