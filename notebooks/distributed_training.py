"""What chapter 21 runs in several processes. Each trains on its share of every batch.

torchrun --standalone --nproc-per-node 2 distributed_training.py FOLDER TASK

Every process writes what it saw to FOLDER/RANK.json. The tasks: ``facts`` compares with
one process, ``crash`` trains and has process 1 killed once, ``mismatch`` gathers
outputs of different shapes, and is expected to fail.
"""

import argparse
import json
import os
import signal
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_utils.files import whole_file

STEPS = 8


class Tagger(nn.Module):
    """A value for every step of sequences of different lengths."""

    def __init__(self, hidden_size=16):
        super().__init__()
        self.lstm = nn.LSTM(4, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, 1)

    def forward(self, x, lengths, total_length=None):
        """(N, T, 4) and (N,) to (N, total_length or the longest of these lengths)."""
        how = {"batch_first": True}
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False, **how)
        output, _ = self.lstm(packed)
        output, _ = pad_packed_sequence(output, total_length=total_length, **how)
        return self.readout(output)[..., 0]


def batch_of(step, rows=8, longest=20):
    """A batch, the same in every process: x (N, T, 4), y (N, T), lengths (N,).

    y is the running sum of the first feature. The second half of the rows is short.
    """
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    lengths[rows // 2 :].clamp_(max=longest // 2)
    x = torch.randn(rows, longest, 4, generator=generator, dtype=torch.float64)
    return x, x[..., 0].cumsum(1), lengths


def share(batch, rank, world):
    """The rows of a batch that belong to one of the processes."""
    rows = torch.arange(len(batch[0])).chunk(world)[rank]
    return tuple(part[rows] for part in batch)


def squared_errors(model, batch):
    """Sum of the squared errors over the real steps, and how many steps these are."""
    x, y, lengths = batch
    real = torch.arange(x.shape[1]) < lengths[:, None]
    return ((model(x, lengths, x.shape[1]) - y)[real] ** 2).sum(), real.sum()


def train(model, optimizer, rank, world, start=0, after=lambda _: None):
    """Train a DDP model; each process calls this with its own rank."""
    for step in range(start, STEPS):
        errors, own = squared_errors(model, share(batch_of(step), rank, world))
        total = own.clone()
        dist.all_reduce(total)  # the real steps of all processes
        optimizer.zero_grad()
        (errors * world / total).backward()  # DDP averages the gradients over processes
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after(step)


# --- what the chapter compares --------------------------------------------------------


def new_model(**how):
    torch.manual_seed(0)
    return Tagger(**how).double()


def gradient_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def distance(tensor, expected):
    return ((tensor - expected).norm() / expected.norm()).item()


def same_everywhere(tensor):
    """Whether all processes hold the same numbers, bit for bit."""
    copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, tensor)
    return all(torch.equal(copy, copies[0]) for copy in copies)


def in_one_process():
    """A model with the gradient of the whole first batch, without DDP."""
    model = new_model()
    errors, number = squared_errors(model, batch_of(step=0))
    (errors / number).backward()
    return model, number


def compare_losses(rank, world):
    """How far the gradient is from that of one process, by what is averaged over."""
    expected, number = in_one_process()
    expected, found = gradient_of(expected), {}
    for name in ("own steps", "all steps"):
        model = DistributedDataParallel(new_model())
        errors, own = squared_errors(model, share(batch_of(step=0), rank, world))
        (errors / own if name == "own steps" else errors * world / number).backward()
        gradient = gradient_of(model)
        found[name] = {
            "distance": distance(gradient, expected),
            "same everywhere": same_everywhere(gradient),
        }
    return found | {"steps of this process": own.item()}


def compare_clipping(rank, world, most=0.1):
    """How far from the clipped gradient of one process, by when it is clipped."""
    expected, number = in_one_process()
    nn.utils.clip_grad_norm_(expected.parameters(), most)
    expected, found = gradient_of(expected), {}
    for name in ("after", "before"):
        model = DistributedDataParallel(new_model())
        # no_sync has to be around the forward pass too, or it does nothing.
        with nullcontext() if name == "after" else model.no_sync():
            errors, _ = squared_errors(model, share(batch_of(step=0), rank, world))
            (errors * world / number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), most)
        gradient = gradient_of(model)
        if name == "before":
            dist.all_reduce(gradient)
            gradient /= world
        found[name] = distance(gradient, expected)
    return found


def compare_outputs(rank, world):
    """Shapes of a process's output without and with total_length, and gathered."""
    x, _, lengths = share(batch_of(step=0), rank, world)
    model = new_model()
    with torch.no_grad():
        own, whole = model(x, lengths), model(x, lengths, x.shape[1])
    gathered = [torch.empty_like(whole) for _ in range(world)]
    dist.all_gather(gathered, whole)
    outputs = {"own": own, "total_length": whole, "gathered": torch.cat(gathered)}
    return {name: list(output.shape) for name, output in outputs.items()}


def compare_training(rank, world):
    """Largest difference of the weights from those of one process after training."""
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        errors, number = squared_errors(model, batch_of(step))
        optimizer.zero_grad()
        (errors / number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    expected = nn.utils.parameters_to_vector(model.parameters())
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(DistributedDataParallel(model), optimizer, rank, world)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    return {
        "difference": (weights - expected).abs().max().item(),
        "same everywhere": same_everywhere(weights),
        "weights": weights.tolist(),
    }


def uneven(rank, world, patience=1.5):
    """Process 1 has a batch more: with Join it finishes, without it waits in vain."""
    batches = 3 + rank

    def backward_through(model):
        for step in range(batches):
            model.zero_grad()
            squared_errors(model, share(batch_of(step), rank, world))[0].backward()

    model = DistributedDataParallel(new_model())
    with Join([model]):
        backward_through(model)
    found = {"batches": batches, "norm": gradient_of(model).norm().item()}
    dist.barrier()
    alone = new_model()
    backward_through(alone)
    found["norm alone"] = gradient_of(alone).norm().item()

    group = dist.new_group(timeout=timedelta(seconds=patience))
    try:
        backward_through(DistributedDataParallel(new_model(), process_group=group))
        time.sleep(0 if rank else 2 * patience)  # done, and alive
    except RuntimeError as error:
        found["without Join"] = str(error)
    return found


def time_steps(rank, world, rounds=9):
    """Seconds of a step, of its parts and of exchanges by their bytes; medians."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Tagger(hidden_size=128))
    x, y, _ = batch_of(step=0, rows=32, longest=64)
    whole = x.float(), y.float(), torch.full((32,), 64)
    half = share(whole, rank, world)

    def step(batch):
        model.zero_grad()
        squared_errors(model, batch)[0].backward()

    def alone(batch):
        with model.no_sync():
            step(batch)

    calls = {"step": lambda: step(half), "alone": lambda: alone(half)}
    calls["whole"] = lambda: alone(whole)  # what one process would do
    for count in (2**10, 2**14, 2**18, 2**20, 2**22):
        buffer = torch.zeros(count)
        calls[str(buffer.nbytes)] = lambda buffer=buffer: dist.all_reduce(buffer)
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    found = {name: sorted(taken)[rounds // 2] for name, taken in seconds.items()}
    return found | {"bytes": sum(p.nbytes for p in model.parameters())}


def facts(_, rank, world):
    comparisons = (compare_losses, compare_clipping, compare_outputs, compare_training)
    everything = (
        *comparisons,
        time_steps,
        uneven,
    )  # last: its group is broken after it
    return {compare.__name__: compare(rank, world) for compare in everything}


def crash(folder, rank, world):
    """Train with a checkpoint every third step; process 1 is killed in the fifth."""
    path, restarts = folder / "run.pt", int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    model, start = new_model(), 0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    def after(step):
        if (step + 1) % 3 == 0 and rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with whole_file(path) as half:
                torch.save(state | {"step": step + 1}, half)
        if restarts == 0 and rank == 1 and step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    train(DistributedDataParallel(model), optimizer, rank, world, start, after)
    weights = nn.utils.parameters_to_vector(model.parameters()).tolist()
    return {"restarts": restarts, "began at step": start, "weights": weights}


def mismatch(_, rank, world):
    x, _, lengths = share(batch_of(step=0), rank, world)
    own = new_model()(x, lengths).detach()  # as wide as the longest sequence here
    dist.all_gather([torch.empty_like(own) for _ in range(world)], own)
    return {"gathered": True}


def main():
    tasks = {"facts": facts, "crash": crash, "mismatch": mismatch}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=tasks)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # nccl for GPUs
    rank, world = dist.get_rank(), dist.get_world_size()
    found = tasks[arguments.task](arguments.folder, rank, world)
    with whole_file(arguments.folder / f"{rank}.json") as half:
        half.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
