"""The loop against one written out, and its checkpoints: killed, cut short, damaged, continued."""

import itertools
import math
import random
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lstm_utils import training as loop
from lstm_utils.gradients import NonFiniteGradientError
from lstm_utils.sequences import LengthBucketSampler
from lstm_utils.training import CheckpointError, History, fit, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4  # batches an epoch


class Training:
    """A small training that draws from every generator: dropout, bucketed batches, noise from Python and NumPy."""

    def __init__(self, seed=0, lr=0.01, loader=True):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self.lstm = nn.LSTM(3, 8, 2, batch_first=True, dropout=0.4)
        self.model = nn.ModuleDict({"lstm": self.lstm, "head": nn.Linear(8, 1)})
        generator = torch.Generator().manual_seed(5)
        x, y = torch.randn(32, 6, 3, generator=generator), torch.randn(32, 1, generator=generator)
        sampler = LengthBucketSampler([6] * 32, batch_size=8, seed=3)
        data = TensorDataset(x, y)
        self.batches = DataLoader(data, batch_sampler=sampler) if loader else [(x, y)]
        self.x, self.y = x, y
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.02, total_steps=40)

    def predict(self, x):
        return self.model["head"](self.lstm(x)[0][:, -1])

    def loss_of(self, batch):
        x, y = batch
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return F.mse_loss(self.predict(x + 0.01 * noise), y)

    def validate(self):
        assert not self.model.training
        assert not torch.is_grad_enabled()
        return -F.mse_loss(self.predict(self.x), self.y).item()

    def fit(self, epochs, **how):
        how = {"scheduler": self.scheduler, "max_norm": 0.5} | how
        return fit(self.model, self.batches, self.loss_of, self.validate, self.optimizer, epochs=epochs, **how)

    def weights(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def assert_equal_bit_for_bit(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_the_loop_one_would_write():
    training = Training()
    history = training.fit(3)
    plain = Training()  # only now, since both draw from the global generators
    losses, best = [], (-math.inf, None)
    for epoch in range(3):
        plain.batches.batch_sampler.set_epoch(epoch)
        plain.model.train()
        for batch in plain.batches:
            plain.optimizer.zero_grad()
            loss = plain.loss_of(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
            plain.optimizer.step()
            plain.scheduler.step()
            losses.append(loss.item())
        plain.model.eval()
        with torch.no_grad():
            best = max(best, (plain.validate(), epoch, plain.weights()), key=lambda found: found[0])
    assert history.losses == pytest.approx(torch.tensor(losses).view(3, STEPS).mean(1).tolist())
    assert history.best == best[1]
    assert history.metrics[history.best] == pytest.approx(best[0])
    for name, tensor in training.weights().items():
        torch.testing.assert_close(tensor, best[2][name])


def test_the_first_of_the_best_epochs_is_kept_and_the_model_left_for_use():
    for maximize, best in ((True, 1), (False, 2)):
        training = Training()
        metrics, seen = iter([0.5, 0.7, 0.2, 0.7, 0.2]), []

        def validate(metrics=metrics, seen=seen, training=training):
            seen.append(training.weights())
            return next(metrics)

        training.validate = validate
        history = training.fit(5, maximize=maximize)
        assert history.best == best
        assert history.metrics == [0.5, 0.7, 0.2, 0.7, 0.2]
        assert_equal_bit_for_bit(training.weights(), seen[best])
        assert not training.model.training


def test_the_share_of_clipped_steps_is_counted():
    assert Training().fit(2, max_norm=1e-6).clipped == [1.0, 1.0]
    assert Training().fit(2, max_norm=math.inf).clipped == [0.0, 0.0]
    mixed = Training()
    norms = iter([1e-9, 1e9, 1e-9, 1e9])
    mixed.loss_of = lambda batch: next(norms) * mixed.predict(batch[0]).mean()
    assert mixed.fit(1, max_norm=1.0).clipped == [0.5]


def test_the_gradient_is_clipped_to_a_norm_of_one_by_default():
    for norm, clipped in ((0.99, 0.0), (1.5, 1.0)):
        weight = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)

        def loss_of(batch, weight=weight):
            return (weight(torch.ones(1)) * batch).sum()  # whose gradient is the batch

        assert fit(weight, [norm], loss_of, lambda: 0.0, optimizer, epochs=1).clipped == [clipped]


def test_the_epoch_is_told_to_whatever_asks_for_it():
    training, told = Training(loader=False), []

    class Batches(list):
        def set_epoch(self, epoch):
            told.append(("batches", epoch))

    batches = Batches(training.batches)
    for name in ("batch_sampler", "sampler"):
        setattr(batches, name, SimpleNamespace(set_epoch=lambda epoch, name=name: told.append((name, epoch))))
    training.batches = batches
    training.fit(2)
    assert told == [(name, epoch) for epoch in range(2) for name in ("batches", "batch_sampler", "sampler")]


def test_seconds_are_those_of_the_epoch(monkeypatch):
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=itertools.count(100, 3).__next__))
    assert Training(loader=False).fit(2).seconds == [3, 3]


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole = Training()
    expected = whole.fit(6)
    for stop in (1, 3, 6):
        path = tmp_path / f"{stop}.pt"
        Training().fit(stop, checkpoint=path)
        resumed = Training(seed=99)  # other weights and generators, which must not matter
        found = resumed.fit(6, checkpoint=path)
        assert found == expected
        assert_equal_bit_for_bit(resumed.weights(), whole.weights())
        assert len(found.seconds) == 6


def test_a_checkpoint_itself_changes_nothing(tmp_path):
    plain = Training()
    expected = plain.fit(3)
    kept = Training()
    assert kept.fit(3, checkpoint=tmp_path / "a.pt") == expected
    assert_equal_bit_for_bit(plain.weights(), kept.weights())
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_an_error_in_the_middle_loses_one_epoch_at_most(tmp_path):
    expected = Training().fit(4)
    path, training, calls = tmp_path / "a.pt", Training(), []
    plain = training.loss_of

    def fail_in_the_third_epoch(batch):
        calls.append(1)
        if len(calls) == 2 * STEPS + 2:
            raise KeyboardInterrupt
        return plain(batch)

    training.loss_of = fail_in_the_third_epoch
    with pytest.raises(KeyboardInterrupt):
        training.fit(4, checkpoint=path)
    assert len(load_checkpoint(path)["history"]["losses"]) == 2
    assert Training(seed=7).fit(4, checkpoint=path) == expected


def test_a_process_killed_in_the_middle_of_an_epoch_is_continued(tmp_path):
    path = tmp_path / "a.pt"
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from test_training import STEPS, Training
        torch.set_num_threads(1)
        training, calls = Training(), []
        plain = training.loss_of
        def stop(batch):
            calls.append(1)
            if len(calls) == 2 * STEPS + 3:
                print("in the third epoch", flush=True)
                time.sleep(600)
            return plain(batch)
        training.loss_of = stop
        training.fit(5, checkpoint={str(path)!r})
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "in the third epoch\n"
        child.kill()  # SIGKILL, which nothing can catch
    assert child.returncode == -9 or sys.platform == "win32"
    assert len(load_checkpoint(path)["history"]["losses"]) == 2
    whole = Training()
    expected = whole.fit(5)
    resumed = Training(seed=99)
    assert resumed.fit(5, checkpoint=path) == expected
    assert_equal_bit_for_bit(resumed.weights(), whole.weights())


@pytest.mark.parametrize("culprit", ["torch.save", "os.fsync", "pathlib.Path.replace"])
def test_a_checkpoint_is_never_half_written(culprit, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    Training().fit(1, checkpoint=path)
    before = path.read_bytes()

    def fail(*arguments, **_):
        if culprit == "torch.save":
            arguments[1].write(b"half of it")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(culprit, fail)
        with pytest.raises(OSError, match="No space left"):
            Training().fit(2, checkpoint=path)
    assert path.read_bytes() == before
    expected = Training().fit(2)
    assert Training().fit(2, checkpoint=path) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(("context", "error"), [(OSError("disk full"), OSError), (None, RuntimeError)])
def test_what_torch_hides_a_full_disk_behind_is_taken_off(context, error, tmp_path, monkeypatch):
    def fail(*_):
        found = RuntimeError("unexpected pos")
        found.__context__ = context
        raise found

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(error, match="unexpected pos" if context is None else "disk full"):
        Training(loader=False).fit(1, checkpoint=tmp_path / "a.pt")


def test_a_missing_folder_is_refused_before_the_first_step(tmp_path):
    training = Training(loader=False)
    training.loss_of = lambda _: pytest.fail("a step was taken")
    with pytest.raises(FileNotFoundError, match=r"^the folder '.*nowhere' does not exist; create it, or name another$"):
        training.fit(1, checkpoint=tmp_path / "nowhere" / "a.pt")


def test_a_damaged_checkpoint_is_refused_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "a.pt"
    Training().fit(1, checkpoint=path)
    whole = path.read_bytes()
    for length in [0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"a\.pt is damaged.*delete it to begin anew"):
            Training().fit(2, checkpoint=path)
    state = load_bytes(whole, path)
    at = whole.index(next(iter(state["model"].values())).numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged in [^ ]+/data/\d+; delete it to begin anew$"):
        load_checkpoint(path)
    rng = random.Random(0)
    for _ in range(100):  # one flipped bit: refused, or it lies where nothing is stored
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        assert_equal_bit_for_bit(found["model"], state["model"])
        assert_equal_bit_for_bit(found["best"], state["best"])
        assert found["history"] == state["history"]


def load_bytes(content, path):
    path.write_bytes(content)
    return load_checkpoint(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(nn.Linear(1, 1).state_dict(), path)
    with pytest.raises(CheckpointError, match="not written by this version of fit"):
        Training().fit(1, checkpoint=path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="not written by this version of fit"):
        Training().fit(1, checkpoint=path)
    path.write_text("weights")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Training().fit(1, checkpoint=path)
    with pytest.raises(FileNotFoundError, match=r"^there is no file '.*none\.pt'$"):
        load_checkpoint(tmp_path / "none.pt")


def test_no_code_in_a_file_is_run(tmp_path):
    torch.save({"format": "lstm_utils.training, 1", "model": nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds more than numbers"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_holds_no_objects_and_loads_with_weights_only(tmp_path):
    path = tmp_path / "a.pt"
    history = Training().fit(2, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert History(**state["history"]) == history
    assert set(state) == {"format", "model", "optimizer", "scheduler", "best", "history", "settings", "random"}
    assert asdict(history) == state["history"]


def test_a_checkpoint_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    Training().fit(1, checkpoint=path)
    changed = Training()
    changed.optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(CheckpointError, match=r"weight_decay of group 0 was 0\.01 and is 0\.5; delete it"):
        changed.fit(2, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"max_norm was 0\.5 and is 9"):
        Training().fit(2, checkpoint=path, max_norm=9)
    with pytest.raises(CheckpointError, match=r"scheduler was 'OneCycleLR' and is None"):
        Training().fit(2, checkpoint=path, scheduler=None)
    with pytest.raises(CheckpointError, match=r"max_norm was 0\.5 and is 9, maximize was True and is False; delete"):
        Training().fit(2, checkpoint=path, max_norm=9, maximize=False)


def test_a_finished_training_is_read_back(tmp_path):
    path = tmp_path / "a.pt"
    first = Training()
    history = first.fit(3, checkpoint=path)
    again = Training(seed=4)
    assert again.fit(2, checkpoint=path) == history
    assert_equal_bit_for_bit(again.weights(), first.weights())


def test_what_cannot_be_trained_is_refused():
    for epochs in (0, -1, True, 2.0, "2"):
        with pytest.raises(ValueError, match=f"^epochs must be at least 1, got {epochs!r}$"):
            Training(loader=False).fit(epochs)
    training = Training()
    training.batches = iter(list(training.batches))
    with pytest.raises(ValueError, match="no batches in epoch 1; an iterator is used up after one"):
        training.fit(2)
    training = Training()
    training.validate = lambda: math.nan
    with pytest.raises(ValueError, match="validate returned nan after epoch 0"):
        training.fit(2)
    training = Training()
    training.loss_of = lambda batch: training.predict(batch[0]).mean() * math.inf
    with pytest.raises(NonFiniteGradientError):
        training.fit(1)


@pytest.mark.parametrize("name", ["loss_of", "validate"])
def test_what_cannot_be_called_is_refused_by_name(name):
    training = Training()
    setattr(training, name, 0.5)
    with pytest.raises(TypeError, match=rf"^{name} must be a function to call, got 0\.5 of type float$"):
        training.fit(1)


def test_a_list_of_batches_needs_no_sampler_and_no_scheduler():
    training = Training(loader=False)
    history = training.fit(3, scheduler=None)
    assert len(history.losses) == 3


def test_a_bar_is_shown_when_asked_for_and_never_into_a_file(capsys):
    Training().fit(2, progress=True)
    shown = capsys.readouterr()
    assert "8/8" in shown.err
    assert re.search(r"loss=\d.*metric=-?\d", shown.err)
    assert not shown.out
    for silent in (None, False):  # under capsys, stderr is no terminal
        Training().fit(2, progress=silent)
        assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_unless_it_is_unwanted(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Training(loader=False).fit(1, progress=False)
    assert capsys.readouterr().err == ""
    Training(loader=False).fit(1)
    assert "1/1" in capsys.readouterr().err


def test_the_bar_of_a_continued_training_begins_where_it_ended(capsys, tmp_path):
    Training().fit(1, checkpoint=tmp_path / "a.pt")
    Training().fit(3, checkpoint=tmp_path / "a.pt", progress=True)
    shown = re.findall(r"(\S+)/12 ", capsys.readouterr().err)
    assert (shown[0], shown[-1]) == ("4", "12")


def test_the_bar_of_a_loader_of_unknown_length_only_counts(capsys):
    training = Training(loader=False)
    given = iter(training.batches)
    training.batches = (batch for batch in given)
    training.fit(1, progress=True)
    assert "1it" in capsys.readouterr().err
