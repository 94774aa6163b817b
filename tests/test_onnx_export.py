"""Exported files against eager PyTorch at sizes that no export saw, and everything that must not become a file."""

import io
import logging
import os
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, specs
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_utils import onnx_files
from lstm_utils.onnx_export import export_onnx, quantize_onnx
from lstm_utils.onnx_trials import Trial, compare, free_shape, quiet, run_trials
from lstm_utils.projection import FoldedProjection
from lstm_utils.sequences import run_packed

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
I, H, N, T = 3, 5, 4, 6  # noqa: E741
REAL_EXPORT = torch.onnx.export


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lstm.onnx"


def example(batch_first=False, n=N, t=T):
    return torch.randn((n, t, I) if batch_first else (t, n, I))


def run(path, *tensors):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})


def flat(result):
    output, (h_n, c_n) = result
    return [tensor.detach().numpy() for tensor in (output, h_n, c_n)]


def assert_same(found, wanted):
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)  # shapes, too


class Tagger(nn.Module):
    """Embedding, LSTM, readout, as applications have them; ``how`` says what is done in between."""

    def __init__(self, how="plain", **arguments):
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, H, batch_first=True, **arguments)
        self.readout = nn.Linear(H * (2 if self.lstm.bidirectional else 1), 2)
        self.eval()

    def forward(self, tokens, lengths=None):
        x = self.embedding(tokens)
        if lengths is None:
            return self.readout(self.lstm(x)[0])
        if self.how == "unpadded":
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.readout(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])
        output, (h_n, _) = run_packed(self.lstm, x, lengths)
        if self.how == "len":
            return self.readout(output[torch.arange(len(tokens)), lengths - 1])
        return self.readout(output), h_n


# What works ----------------------------------------------------------------------------------------------------------


@given(specs(dropout=0.0, proj_size=0), st.booleans(), st.booleans())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_lstm_gives_what_pytorch_gives_at_sizes_that_the_export_did_not_see(
    tmp_path_factory, spec, states, lengths
):
    path = tmp_path_factory.mktemp("onnx") / "lstm.onnx"
    lstm = build(spec).eval()
    report = export_onnx(lstm, torch.randn(spec.shapes(4, 2).input), path, states=states, lengths=lengths)
    assert report.nodes["LSTM"] == spec.num_layers
    assert report.max_error < 1e-5
    for steps, rows in ((1, 1), (3, 5), (9, 2)):
        shapes = spec.shapes(steps, rows)
        x, h_0, c_0 = (torch.randn(shape) for shape in (shapes.input, shapes.h_n, shapes.c_n))
        real = torch.randint(1, steps + 1, (rows,))
        hx = (h_0, c_0) if states else None
        wanted = run_packed(lstm, x, real, hx) if lengths else lstm(x, hx)
        assert_same(run(path, x, *([real] if lengths else []), *(hx or ())), flat(wanted))


def test_the_report_says_what_is_in_the_file(path):
    report = export_onnx(nn.LSTM(I, H, 2, bidirectional=True).eval(), example(), str(path), states=True, lengths=True)
    assert report.path == path
    assert report.inputs == {"input": ("T", "N", I), "lengths": ("N",), "h_0": (4, "N", H), "c_0": (4, "N", H)}
    assert report.outputs == {"output": ("T", "N", 2 * H), "h_n": (4, "N", H), "c_n": (4, "N", H)}
    assert report.checked == ("T=6, N=4", "T=1, N=4", "T=12, N=4", "T=6, N=1", "T=6, N=8", "T=1, N=1", "T=7, N=5")
    assert report.nbytes == path.stat().st_size
    graph = onnx.load(path, load_external_data=False).graph
    assert report.nodes["LSTM"] == sum(node.op_type == "LSTM" for node in graph.node) == 2
    assert os.listdir(path.parent) == [path.name]  # one file, without external data


@pytest.mark.parametrize("names", [("y", "h", "c"), ["a", "b", "c"]])
def test_the_outputs_of_an_lstm_are_called_as_asked(path, names):
    lstm, x = nn.LSTM(I, H).eval(), example()
    report = export_onnx(lstm, x, path, output_names=names)
    assert [value.name for value in onnx.load(path).graph.output] == list(report.outputs) == list(names)
    assert_same(run(path, x), flat(lstm(x)))


@pytest.mark.parametrize("names", [("y", "h"), ("y", "h", "h"), ("input", "h", "c"), ("", "h", "c")])
def test_names_that_do_not_fit_the_outputs_are_refused(path, names):
    with pytest.raises(ValueError, match=r"output_names.*" + re.escape(str(list(names)))):
        export_onnx(nn.LSTM(I, H).eval(), example(), path, output_names=names)
    assert not path.exists()


def test_an_example_of_one_step_and_one_row_frees_both(path):
    lstm = nn.LSTM(I, H).eval()
    assert export_onnx(lstm, example(n=1, t=1), path).checked == ("T=1, N=1", "T=2, N=1", "T=1, N=2", "T=2, N=2")
    x = example(n=3, t=7)
    assert_same(run(path, x), flat(lstm(x)))


def test_a_stream_in_pieces_is_the_whole_run(path):
    lstm = nn.LSTM(I, H, 2).eval()
    export_onnx(lstm, example(), path, states=True)
    x, state, outputs = example(n=2, t=11), (torch.zeros(2, 2, H), torch.zeros(2, 2, H)), []
    for piece in x.split([1, 4, 6]):
        output, *arrays = run(path, piece, *state)
        state = tuple(map(torch.from_numpy, arrays))
        outputs.append(output)
    assert_same([np.concatenate(outputs), *(s.numpy() for s in state)], flat(lstm(x)))


def test_padding_is_not_read(path):
    lstm = nn.LSTM(I, H, bidirectional=True).eval()
    export_onnx(lstm, example(), path, lengths=True)
    lengths, x = torch.tensor([2, 5, 1]), example(n=3, t=5)
    filled = x.clone()
    filled[torch.arange(5)[:, None] >= lengths] = 1e6
    assert_same(run(path, filled, lengths), run(path, x, lengths))


def test_a_folded_projection_takes_the_place_of_one_with_states_and_lengths(path):
    lstm = nn.LSTM(I, H, 2, proj_size=2, bidirectional=True, batch_first=True).eval()
    report = export_onnx(FoldedProjection(lstm), example(True), path, states=True, lengths=True)
    assert report.outputs == {"output": ("N", "T", 4), "h_n": (4, "N", 2), "c_n": (4, "N", H)}
    x, lengths, hx = example(True, 3, 9), torch.tensor([9, 2, 4]), (torch.randn(4, 3, 2), torch.randn(4, 3, H))
    assert_same(run(path, x, lengths, *hx), flat(run_packed(lstm, x, lengths, hx)))


def test_a_model_with_tokens_and_lengths(path):
    model = Tagger(num_layers=2, bidirectional=True)
    tensors = torch.randint(9, (3, 5)), torch.tensor([5, 2, 4])
    report = export_onnx(model, tensors, path, dynamic=[("N", "T"), "lengths"], output_names=["tags", "h_n"])
    assert report.inputs == {"tokens": ("N", "T"), "lengths": ("N",)}
    assert report.outputs == {"tags": ("N", "T", 2), "h_n": (4, "N", H)}
    tokens, lengths = torch.randint(9, (2, 8)), torch.tensor([3, 6])
    assert_same(run(path, tokens, lengths), [tensor.detach().numpy() for tensor in model(tokens, lengths)])


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_single_input_begins_with_batch_and_time_as_the_lstm_says(path, batch_first):
    model = nn.Sequential(nn.LSTM(I, H, batch_first=batch_first)).eval()
    report = export_onnx(model, example(batch_first), path)
    assert report.inputs == {"input": ("N", "T", I) if batch_first else ("T", "N", I)}
    assert list(report.outputs) == ["output", "output_1", "output_2"]


def test_an_axis_may_stay_fixed_and_one_may_have_a_size_of_its_own(path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(I, H).eval()

        def forward(self, x):
            return [torch.cat([self.lstm(x)[0]] * 2)], (x,)

    report = export_onnx(Twice().eval(), example(), path, dynamic=[("T", None)])
    assert report.inputs == {"x": ("T", N, I)}
    assert report.outputs == {"output": ("output_0", N, H), "output_1": ("T", N, I)}
    assert report.nodes["LSTM"] == 1
    assert report.checked == ("T=6", "T=1", "T=12", "T=7")


def test_half_precision_needs_a_wider_tolerance(path):
    lstm = nn.LSTM(I, H).half().eval()
    assert export_onnx(lstm, example().half(), path, tolerance=1e-2).max_error > 0
    assert export_onnx(lstm, example().half(), path, states=True, tolerance=1e-2).max_error > 0
    path.unlink()
    with pytest.raises(RuntimeError, match=r"T=6, N=4, output differs by .* and 1e-09 is allowed"):
        export_onnx(lstm, example().half(), path, tolerance=1e-9)
    assert not path.exists()


def test_the_model_the_random_numbers_and_the_terminal_stay_as_they_were(path, capfd):
    lstm, x = nn.LSTM(I, H, 2, dropout=0.5).eval(), example()
    before, weights = torch.get_rng_state(), {name: p.clone() for name, p in lstm.named_parameters()}
    export_onnx(lstm, x, path, lengths=True)  # packing is what C++ warns of
    assert not lstm.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and torch.equal(p, weights[name]) for name, p in lstm.named_parameters())
    assert not lstm._forward_pre_hooks
    assert capfd.readouterr() == ("", "")


# What is refused before anything is exported -------------------------------------------------------------------------

BAD_MODELS = {
    "training": (
        lambda: nn.LSTM(I, H),
        ValueError,
        r"^the model is in training mode, and a file computes as in eval mode; call model\.eval\(\) first$",
    ),
    "projection": (
        lambda: nn.LSTM(I, H, proj_size=2).eval(),
        ValueError,
        r"^an nn\.LSTM has proj_size=2, and ONNX's LSTM has no projection; put lstm_utils\.projection\."
        r"FoldedProjection\(lstm\) in its place, which gives the same results$",
    ),
    "other types": (
        lambda: nn.ModuleList([nn.LSTM(I, H).double(), nn.LSTM(I, H).bfloat16()]).eval(),
        ValueError,
        r"^an nn\.LSTM has weights of torch\.bfloat16, torch\.float64, which",
    ),
    "no lstm": (
        lambda: nn.GRU(I, H).eval(),
        TypeError,
        "^there is no nn.LSTM in GRU; a loop over time written by hand would be unrolled, for one length$",
    ),
    "float64": (lambda: nn.LSTM(I, H).double().eval(), ValueError, r"torch.float64.*call model.float\(\)"),
    "bfloat16": (lambda: nn.LSTM(I, H).bfloat16().eval(), ValueError, "torch.bfloat16"),
    "device": (lambda: nn.LSTM(I, H, device="meta").eval(), ValueError, r"on meta.*call model.cpu\(\)"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_be_exported_is_refused_with_the_way_round(name, path, monkeypatch):
    make, error, message = BAD_MODELS[name]
    monkeypatch.setattr(torch.onnx, "export", None)  # it is not even tried
    with pytest.raises(error, match=message):
        export_onnx(make(), example(), path)


def test_a_part_in_training_mode_is_noticed(path):
    model = Tagger()
    model.embedding.train()
    with pytest.raises(ValueError, match="training mode"):
        export_onnx(model, torch.randint(9, (3, 5)), path)


def test_two_gigabytes_do_not_fit_in_one_file(path):
    model = Tagger()
    model.register_buffer("large", torch.zeros(1).expand(2**29))
    with pytest.raises(ValueError, match=r"take 2,147,\d+,\d+ bytes, and one ONNX file holds fewer than 2,147,483,648"):
        export_onnx(model, torch.randint(9, (3, 5)), path)


def test_two_gigabytes_exactly_are_too_many(path):
    model = nn.LSTM(I, H).eval()
    held = sum(parameter.nbytes for parameter in model.parameters())
    model.register_buffer("large", torch.zeros(1, dtype=torch.int8).expand(2**31 - held))
    with pytest.raises(ValueError, match=r"^the weights take 2,147,483,648 bytes, and one ONNX file holds fewer"):
        export_onnx(model, example(), path)


def test_a_folder_and_names_that_are_none_are_quoted(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"^'{tmp_path}' is a folder; name a file in it$"):
        export_onnx(nn.LSTM(I, H).eval(), example(), tmp_path)
    with pytest.raises(TypeError, match=r"^output_names\[1\] must be a name, got 3 of type int$"):
        export_onnx(nn.LSTM(I, H).eval(), example(), tmp_path / "a.onnx", output_names=["output", 3, "c_n"])


def test_what_the_exporter_says_first_is_passed_on(path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such operator\nand much more\nof it")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match=r"^torch\.onnx\.export failed, ValueError: no such operator$"):
        export_onnx(nn.LSTM(I, H).eval(), example(), path)


def test_a_number_of_layers_that_follows_the_length_is_refused(path):
    model = Returns(lambda lstm, x: lstm(x)[0] + lstm(x)[0] if len(x) == T else lstm(x)[0])
    with pytest.raises(ValueError, match=r"^how many LSTM layers run depends on the sizes \(2 at .*; 1 at .*\), and a"):
        export_onnx(model, example(), path)


def test_a_missing_folder_and_a_missing_package_are_said_first(path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export_onnx(nn.LSTM(I, H).eval(), example(), path.parent / "nowhere" / "lstm.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'onnx is missing: pip install "lstm-utils\[notebooks\]"'):
        export_onnx(nn.LSTM(I, H).eval(), example(), path)


TOKENS, LENGTHS = torch.randint(9, (3, 5)), torch.tensor([5, 2, 4])
BAD_ARGUMENTS = {
    "unbatched": (lambda: nn.LSTM(I, H), example()[:, 0], {}, r"padded 3-D batch.*Got a Tensor of shape \(6, 3\)"),
    "states as example": (lambda: nn.LSTM(I, H), (example(), None), {}, "states=True and lengths=True add inputs"),
    "axes of an lstm": (lambda: nn.LSTM(I, H), example(), {"dynamic": [("T", "N")]}, r"dynamic=\[\('T', 'N'\)\]"),
    "states of a model": (Tagger, TOKENS, {"states": True}, "arguments of its forward"),
    "lengths of a model": (Tagger, TOKENS, {"lengths": True}, "arguments of its forward"),
    "no axes": (Tagger, (TOKENS, LENGTHS), {}, "axes of every input.*got None for 2 inputs"),
    "too few axes": (Tagger, (TOKENS, LENGTHS), {"dynamic": [("N", "T")]}, "axes of every input"),
    "too many inputs": (Tagger, (TOKENS,) * 3, {"dynamic": [("N", "T")] * 3}, r"names \['tokens', 'lengths'\]"),
    "a name for axes": (Tagger, TOKENS, {"dynamic": ["NT"]}, r"axes of tokens, of shape \(3, 5\), cannot be 'NT'"),
    "too many axes": (Tagger, TOKENS, {"dynamic": [("N", "T", "I")]}, "cannot be"),
    "nothing free": (Tagger, TOKENS, {"dynamic": [()]}, "there must be a free axis"),
    "lengths without T": (Tagger, (TOKENS, LENGTHS), {"dynamic": [("N",), "lengths"]}, "both 'N' and 'T'"),
    "sizes": (Tagger, (TOKENS, LENGTHS), {"dynamic": [("T", "N"), "lengths"]}, "'N' is 3 long in lengths, and 5"),
    "names": (Tagger, TOKENS, {"output_names": ["a", "b"]}, r"1 outputs, and 2 output_names: \['a', 'b'\]"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_quoted(name, path):
    make, tensors, arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        export_onnx(make().eval(), tensors, path, **arguments)


class Returns(nn.Module):
    """An LSTM whose forward is given."""

    def __init__(self, forward, **arguments):
        super().__init__()
        self.lstm, self.given = nn.LSTM(I, H, **arguments), forward
        self.eval()

    def forward(self, x):
        return self.given(self.lstm, x)


@pytest.mark.parametrize(
    ("forward", "error", "message"),
    [
        (lambda lstm, x: {"output": lstm(x)[0]}, TypeError, "returns a dict"),
        (lambda lstm, x: lstm(pack_padded_sequence(x, [len(x)] * x.shape[1])), TypeError, "returns a PackedSequence"),
        (lambda lstm, x: lstm(x, (torch.zeros(1, N, H),) * 2), ValueError, "fails at T=6, N=1, with RuntimeError"),
        (lambda lstm, x: [lstm(piece)[0] for piece in x.split(2)][-1], ValueError, "3 at T=6, N=4; 1 at T=1, N=4"),
        (
            lambda lstm, x: lstm(x)[0].squeeze(0),
            ValueError,
            r"^how many dimensions output has .* \(\(6, 4, 5\) at T=6, N=4; \(4, 5\) at T=1, N=4; .* a fixed number$",
        ),
    ],
    ids=["dict", "packed", "fixed batch", "a loop", "squeezed"],
)
def test_a_model_that_has_no_file_for_all_sizes_is_refused(forward, error, message, path):
    with pytest.raises(error, match=message):
        export_onnx(Returns(forward), example(), path)


# Trials --------------------------------------------------------------------------------------------------------------


class Twofold(nn.Module):
    """Takes tokens and lengths, and returns what it was given."""

    def forward(self, tokens, lengths):
        return [tokens, (lengths,)]


def test_inputs_of_other_sizes_are_drawn_like_the_example_and_lengths_are_in_no_order():
    tokens, lengths = torch.tensor([[2, 5, 7]] * 4), torch.tensor([3, 1, 2, 2], dtype=torch.int32)
    inputs, axes = {"tokens": tokens, "lengths": lengths}, {"tokens": ("N", "T"), "lengths": "lengths"}
    state = torch.get_rng_state()
    first, *others = run_trials(Twofold(), inputs, axes)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.inputs, first.layers) == (inputs, 0)
    for trial in others:
        assert {*trial.inputs["tokens"].flatten().tolist()} <= {2, 5, 7}
        assert trial.inputs["tokens"].shape == (trial.sizes["N"], trial.sizes["T"])
        assert trial.inputs["lengths"].dtype == torch.int32
        assert list(trial.outputs) == ["output", "output_1"]
    drawn = {str(trial): trial.inputs["lengths"].tolist() for trial in others}
    assert drawn == {
        "N=1, T=3": [2],
        "N=8, T=3": [2, 3, 1, 2, 3, 1, 2, 3],
        "N=4, T=1": [1, 1, 1, 1],
        "N=4, T=6": [2, 3, 4, 5],
        "N=1, T=1": [1],
        "N=5, T=4": [2, 3, 4, 1, 2],
    }
    assert free_shape([first, *others], "inputs", "tokens") == free_shape([first, *others], "outputs", "output")
    with pytest.raises(ValueError, match=r"^the example of tokens has no entry to draw others from, got \(0, 3\)$"):
        run_trials(Twofold(), inputs | {"tokens": tokens[:0]}, axes)


def trial_of(**outputs):
    inputs = {"x": torch.zeros(2)}
    return Trial({"N": 2}, inputs, {name: torch.tensor(values) for name, values in outputs.items()}, 1)


def test_differences_are_relative_to_1_and_the_value_and_the_largest_counts():
    trial = trial_of(a=[1.0, 3.0], b=[[-4.0]], none=[])
    found = [np.array([1.5, 3.0]), np.array([[-4.5]]), np.zeros(0)]
    assert compare(lambda feed: [feed["x"] + 1, *found][1:], trial, 0.25) == 0.25  # as much as is allowed
    with pytest.raises(RuntimeError, match=r"^at N=2, a differs by 0.25, and 0.24 is allowed$"):
        compare(lambda _: found, trial, 0.24)
    exact = [tensor.numpy() for tensor in trial.outputs.values()]
    assert compare(lambda _: exact, trial, 0) == 0
    with pytest.raises(ValueError, match="shorter"):
        compare(lambda _: found[:1], trial, 1)


def test_a_file_that_fails_or_has_other_shapes_is_reported_with_a_cure():
    cure = "a size was fixed as the model was traced: take sizes from tensor.shape, pad packed outputs to total_length"
    with pytest.raises(RuntimeError, match=f"^the file fails at N=2, and PyTorch does not; {cure}. 'y'$"):
        compare(lambda feed: feed["y"], trial_of(a=[1.0]), 1)
    shapes = r"the file gives a the shape \(1, 1\), and PyTorch \(1,\)"
    with pytest.raises(RuntimeError, match=f"^at N=2, {shapes}; {cure}$"):
        compare(lambda _: [np.ones((1, 1))], trial_of(a=[1.0]), 1)


# What the check finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "unpadded",
            r"at N=1, T=5, the file gives output the shape \(1, 5, 2\), and PyTorch \(1, 2, 2\);.*to total_length",
        ),
        ("len", "the file fails at N=1, T=5, and PyTorch does not; a size was fixed"),
    ],
)
def test_a_size_fixed_by_the_trace_is_found_and_the_old_file_stays(how, message, path):
    path.write_text("old")
    with pytest.raises(RuntimeError, match=message):
        export_onnx(Tagger(how), (TOKENS, LENGTHS), path, dynamic=[("N", "T"), "lengths"])
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


def test_an_input_that_the_exporter_left_out_is_found(path):
    class Ignores(Tagger):
        def forward(self, tokens, mood):  # noqa: ARG002
            return super().forward(tokens)

    with pytest.raises(RuntimeError, match="has no input 'mood', which forward does not use"):
        export_onnx(Ignores(), (TOKENS, torch.zeros(3)), path, dynamic=[("N", "T"), ("N",)])


def test_a_layer_that_is_not_used_is_found(path):
    def forward(lstm, x):
        lstm(x)
        return x + 1

    with pytest.raises(
        RuntimeError, match=r"^the file has 0 LSTM nodes, and 1 layers ran; a layer whose result is not used"
    ):
        export_onnx(Returns(forward), example(), path)


def test_an_error_of_the_exporter_is_passed_on(path, capfd):
    with pytest.raises(RuntimeError, match=r"torch\.onnx\.export failed, UnsupportedOperatorError: "):
        export_onnx(Returns(lambda lstm, x: torch.special.i0(lstm(x)[0])), example(), path)
    assert capfd.readouterr() == ("", "")
    assert not os.listdir(path.parent)


def exporting(content):
    """An exporter that writes something else."""

    def export(model, tensors, f, **how):
        f.write(content(model, tensors, how))

    return export


def other_weights(_, tensors, how):
    buffer = io.BytesIO()
    REAL_EXPORT(nn.LSTM(I, H).eval(), tensors, buffer, **how)
    return buffer.getvalue()


def no_free_axes(model, tensors, how):
    buffer = io.BytesIO()
    REAL_EXPORT(model, tensors, buffer, **how | {"dynamic_axes": None})
    return buffer.getvalue()


def by_hand(after, output="float[T, N, H]"):
    """A file of one LSTM of zero weights (whose outputs are zero) and what comes after it."""

    def write(*_):
        text = f"""
            <ir_version: 10, opset_import: ["": 18]>
            by_hand (float[T, N, {I}] input) => ({output} output, float[1, N, {H}] h_n, float[1, N, {H}] c_n)
            <float[1, {4 * H}, {I}] W, float[1, {4 * H}, {H}] R, int64[1] one = {{1}}, int64[3] shape = {{1, -1, {H}}}>
            {{ Y, h_n, c_n = LSTM <hidden_size = {H}> (input, W, R)
              {after} }}
        """
        model = onnx.parser.parse_model(text.replace("H]", f"{H}]"))
        for value, width in (("W", I), ("R", H)):
            zeros = np.zeros((1, 4 * H, width), dtype=np.float32)
            held = next((t for t in model.graph.initializer if t.name == value), None)
            if held is None:
                model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, value))
            else:
                held.CopyFrom(onnx.numpy_helper.from_array(zeros, value))
        for value in [v for v in model.graph.value_info if v.name in "WR"]:
            model.graph.value_info.remove(value)
        return model.SerializeToString()

    return write


def zero_lstm():
    lstm = nn.LSTM(I, H).eval()
    for parameter in lstm.parameters():
        nn.init.zeros_(parameter)
    return lstm


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (other_weights, "at T=1, N=4, output differs by"),
        (no_free_axes, "the file fails at T=2, N=4"),
        (
            by_hand("output = Reshape(Y, shape)"),
            r"at T=2, N=4, .*output the shape \(1, 8, 5\), and PyTorch \(2, 4, 5\)",
        ),
        (by_hand("output = Squeeze(Y, one)", "float[M, N, H]"), "declares the shapes .*'M', 'N', 5"),
    ],
    ids=["values", "frozen", "shapes", "declared"],
)
def test_a_wrong_file_is_not_written(content, message, path, monkeypatch):
    lstm = zero_lstm()
    if content is other_weights:
        nn.init.ones_(lstm.bias_ih_l0)
    monkeypatch.setattr(torch.onnx, "export", exporting(content))
    with pytest.raises(RuntimeError, match=message):
        export_onnx(lstm, example(t=1), path)
    assert not os.listdir(path.parent)


def test_a_right_file_is_written_whoever_made_it(path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", exporting(by_hand("output = Squeeze(Y, one)")))
    assert export_onnx(zero_lstm(), example(t=1), path).nodes == {"LSTM": 1, "Squeeze": 1}


def test_two_that_are_infinite_agree(path):
    def forward(lstm, x):
        return torch.where(torch.arange(H) < 2, lstm(x)[0], -torch.inf)

    assert export_onnx(Returns(forward), example(), path).max_error < 1e-5


def test_nan_is_no_agreement(path):
    lstm = nn.LSTM(I, H).eval()
    nn.init.constant_(lstm.bias_ih_l0, float("nan"))
    with pytest.raises(RuntimeError, match="differs by nan"):
        export_onnx(lstm, example(), path)


# int8 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    lstm, x = nn.LSTM(16, 64, 2, bidirectional=True).eval(), torch.randn(20, 3, 16)
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_onnx(lstm, x, path)
    return lstm, x, path


@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_is_smaller_and_near(exported, per_channel, tmp_path, capfd):
    lstm, x, source = exported
    report = quantize_onnx(source, tmp_path / "int8.onnx", example=[x], per_channel=per_channel)
    assert (report.replaced, report.left) == (2, 0)
    assert report.nbytes == report.path.stat().st_size < source.stat().st_size / 3
    assert 0 < report.max_error < 0.05
    found = run(report.path, x)
    assert max(np.abs(a - b).max() for a, b in zip(found, flat(lstm(x)), strict=True)) < 0.05
    assert os.listdir(tmp_path) == ["int8.onnx"]
    assert capfd.readouterr() == ("", "")


def test_int8_with_states_lengths_and_tokens_needs_no_example(tmp_path):
    model = Tagger()
    source = tmp_path / "float.onnx"
    export_onnx(model, (TOKENS, LENGTHS), source, dynamic=[("N", "T"), "lengths"])
    assert quantize_onnx(source, tmp_path / "int8.onnx").replaced == 1
    export_onnx(nn.LSTM(I, H).eval(), example(), source, states=True)
    assert quantize_onnx(source, tmp_path / "int8.onnx").max_error < 0.05


def test_a_file_of_the_default_exporter_is_quantized_too(tmp_path):
    source, x = tmp_path / "dynamo.onnx", torch.randn(2, 3, 8)
    with quiet():
        torch.onnx.export(nn.LSTM(8, 16).eval(), (x,), source, external_data=False)
    assert quantize_onnx(source, tmp_path / "int8.onnx", example=[x]).replaced == 1


def test_a_file_without_an_lstm_to_replace_is_an_error_and_the_old_one_stays(tmp_path):
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    text = """<ir_version: 10, opset_import: ["": 18]>
        weights_as_inputs (float[T, N, 3] X, float[1, 20, 3] W, float[1, 20, 5] R) => (float[T, 1, N, 5] Y)
        { Y = LSTM <hidden_size = 5> (X, W, R) }"""
    onnx.save(onnx.parser.parse_model(text), source)
    target.write_text("old")
    with pytest.raises(RuntimeError, match=r"no LSTM in .*float.onnx' was quantized; it has 1 LSTM nodes.*constants"):
        quantize_onnx(source, target)
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["float.onnx", "int8.onnx"]


def test_int8_of_numbers_that_are_not_finite_is_an_error(tmp_path):
    source = tmp_path / "float.onnx"
    export_onnx(Tagger(), TOKENS, source)
    graph = onnx.load(source)
    (bias,) = [tensor for tensor in graph.graph.initializer if tensor.name == "readout.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, np.inf, np.float32), bias.name))
    onnx.save(graph, source)
    with pytest.raises(RuntimeError, match=r"^quantized, '.*float.onnx' computes numbers that are not finite$"):
        quantize_onnx(source, tmp_path / "int8.onnx")


def test_axes_that_are_missing_are_asked_for_by_an_example(path):
    message = (
        r'^dynamic needs the free axes of every input, such as \[\("N", "T"\), "lengths"\], and forward a name '
        r"for each; got None for 2 inputs, of which forward names \['tokens', 'lengths'\]$"
    )
    with pytest.raises(ValueError, match=message):
        export_onnx(Tagger(), (TOKENS, LENGTHS), path)


def test_int8_takes_a_path_and_runs_on_the_cpu(monkeypatch, tmp_path):
    with pytest.raises(TypeError, match=r"^source must be a path, got 3 of type int$"):
        quantize_onnx(3, tmp_path / "int8.onnx")
    opened = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, providers: opened.append(providers))
    onnx_files.session(b"")
    assert opened == [["CPUExecutionProvider"]]


def test_int8_says_which_file_or_folder_is_missing(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.onnx"):
        quantize_onnx(tmp_path / "nothing.onnx", tmp_path / "int8.onnx")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quantize_onnx(exported[2], tmp_path / "nowhere" / "int8.onnx")


def test_int8_of_each_row_is_asked_for_and_weights_have_7_bits(exported, tmp_path):
    asked = {"left out": {}, "no": {"per_channel": False}, "yes": {"per_channel": True}}
    reports = {name: quantize_onnx(exported[2], tmp_path / name, **how) for name, how in asked.items()}
    assert reports["left out"].max_error == reports["no"].max_error != reports["yes"].max_error
    contents = {name: onnx.load(report.path).SerializeToString() for name, report in reports.items()}
    assert contents["left out"] == contents["no"] != contents["yes"]
    held = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "no").graph.initializer]
    weights = [array for array in held if array.dtype == np.int8 and array.ndim == 3]
    assert len(weights) == 4
    assert all(np.abs(array.astype(int)).max() <= 64 for array in weights)


def by_text(path, inputs, outputs, nodes, **weights):
    """A file of these nodes, with these weights in it."""
    text = f"""<ir_version: 10, opset_import: ["": 18]> by_text ({inputs}) => ({outputs}) {{ {nodes} }}"""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)


def test_an_lstm_that_stays_is_counted(tmp_path):
    source, random = tmp_path / "float.onnx", np.random.default_rng(0)
    by_text(
        source,
        "float[T, N, 3] X, float[1, 20, 3] W, float[1, 20, 5] R",
        "float[T, 1, N, 5] Y, float[T, 1, N, 5] Z",
        "Y = LSTM <hidden_size = 5> (X, W, R) Z = LSTM <hidden_size = 5> (X, V, S)",
        V=random.normal(size=(1, 20, 3)),
        S=random.normal(size=(1, 20, 5)),
    )
    report = quantize_onnx(source, tmp_path / "int8.onnx")
    assert (report.replaced, report.left) == (1, 1)
    wanted = r"X tensor\(float\) \('T', 'N', 3\), W tensor\(float\) \(1, 20, 3\), R tensor\(float\) \(1, 20, 5\)"
    got = r"\[\('float32', \(2, 2, 3\)\)\]"
    message = rf"^'.*float.onnx' takes {wanted}, with at least one number in each; got {got}$"
    with pytest.raises(ValueError, match=message):
        quantize_onnx(source, tmp_path / "int8.onnx", example=[torch.zeros(2, 2, 3)])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    source = tmp_path / "float.onnx"
    damaged = [lambda: source.write_bytes(b"no protobuf")]
    damaged.append(lambda: by_text(source, "float[N] X", "float[N] Y", "Y = Sigmoyd (X)"))
    damaged.append(lambda: by_text(source, "float[N, 2] X", "float[N, 3] Y", "Y = Sigmoid (X)"))
    for damage in damaged:
        damage()
        with pytest.raises(ValueError, match=r"^'.*float.onnx' cannot be read as ONNX \([^\n]+\); export it again$"):
            quantize_onnx(source, tmp_path / "int8.onnx")


def value(name, kind, *shape):
    return SimpleNamespace(name=name, type=f"tensor({kind})", shape=list(shape))


@pytest.mark.parametrize(
    ("takes", "values", "fits"),
    [
        ([value("x", "float", "N", 2)], [np.ones((3, 2), np.float32)], True),
        ([value("x", "double", "N", 2)], [np.ones((3, 2))], True),
        ([value("x", "int64", 3)], [np.ones(3, np.int64)], True),
        ([value("x", "float", 3), value("y", "bool", "N")], [np.ones(3, np.float32), np.ones(2, bool)], True),
        ([value("x", "float", "N", 2)], [np.ones((3, 2))], False),
        ([value("x", "double", "N", 2)], [np.ones((3, 2), np.float32)], False),
        ([value("x", "double", "N", 2)], [np.ones(3)], False),
        ([value("x", "double", "N", 2)], [np.ones((3, 3))], False),
        ([value("x", "double", "N", 2)], [np.ones((0, 2))], False),
        ([value("x", "double", "N")], [np.ones(3), np.ones(3)], False),
        ([value("x", "double", "N"), value("y", "double", "N")], [np.ones(3)], False),
    ],
)
def test_an_example_has_the_type_and_the_fixed_sizes_that_the_file_declares(takes, values, fits):
    if fits:
        onnx_files._check_values("a.onnx", takes, values)
        return
    with pytest.raises(ValueError, match=r"^'a.onnx' takes x tensor\(.*, with at least one number in each; got \["):
        onnx_files._check_values("a.onnx", takes, values)


def test_an_example_that_is_not_finite_is_quoted():
    takes = [value("x", "double", "N"), value("y", "double", "N")]
    with pytest.raises(ValueError, match=r"^the example y must be finite, got inf$"):
        onnx_files._check_values("a.onnx", takes, [np.ones(2), np.array([1, np.inf, 2])])


def test_made_up_inputs_are_normal_numbers_and_ones_of_the_declared_sizes():
    numbers, again = (onnx_files._made_up(value("x", "float", "T", 500)) for _ in range(2))
    assert (numbers.dtype, numbers.shape[1]) == (np.float32, 500)
    assert numbers.std() == pytest.approx(1, abs=0.1)
    assert (numbers == again).all()
    tokens = onnx_files._made_up(value("tokens", "int64", "N", 2))
    assert (tokens.dtype, tokens.shape[1], {*tokens.flat}) == (np.int64, 2, {1})


def test_a_session_has_one_thread_on_the_cpu_and_sends_no_messages(exported, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    session = onnx_files.session(str(exported[2]))
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    onnx_files.load("onnx")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"  # whoever wants them sent


# quiet ---------------------------------------------------------------------------------------------------------------


def test_quiet_swallows_what_is_printed_warned_and_logged_and_ends_with_its_block(capfd):
    def speak(then=None):
        print("printed")
        os.write(1, b"written to 1")
        os.write(2, b"written to 2")
        logging.getLogger("some").error("logged")
        warnings.warn("warned", UserWarning, stacklevel=1)
        if then:
            raise then

    with pytest.raises(KeyError, match="passed on"), quiet():
        speak(KeyError("passed on"))
    assert capfd.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="warned"):
        speak()
    out, err = capfd.readouterr()
    assert "printed" in out
    assert "written to 1" in out
    assert "written to 2" in err
