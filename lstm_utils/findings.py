"""What a diagnosis says: findings, each with the id of its pitfall, and what could not be checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_utils.pitfalls import pitfalls
from lstm_utils.probe import Run, run
from lstm_utils.trees import first_line

# What costs quality or portability; every other finding makes results wrong or stops the run.
WARNINGS = {"P11", "P17", "P18"}


@dataclass(frozen=True)
class Finding:
    """One pitfall that a module or its batch is in: its id in ``pitfalls.yml``, and what was seen of it."""

    pitfall: str
    seen: str

    @property
    def severity(self) -> str:
        """The word "error" or "warning"."""
        return "warning" if self.pitfall in WARNINGS else "error"

    @property
    def cure(self) -> str:
        """What to do instead."""
        return pitfalls()[self.pitfall].cure

    def __str__(self) -> str:
        title = pitfalls()[self.pitfall].title
        return f"{self.severity} {self.pitfall}: {title}\n  seen: {self.seen}\n  cure: {self.cure}"


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what could not be checked, with the reason."""

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the pitfalls that were found, each once."""
        return tuple(dict.fromkeys(finding.pitfall for finding in self.findings))

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings] or ["no pitfall found"]
        return "\n".join(lines + [f"not checked: {reason}" for reason in self.unchecked])


@dataclass(frozen=True)
class Layout:
    """How a result is to be read: under this shape, in which this dimension counts the samples (None: unknown)."""

    shape: tuple[int, ...]
    samples: int | None


@dataclass
class Case:
    """A module and its batch under diagnosis, with what has been found so far.

    ``sample`` is the tensor or the packed sequence of the batch that holds the samples, ``size`` their number N,
    ``steps`` the number T of its steps; all are None as long as samples cannot be told from steps. ``reading`` are the
    numbers of the calls whose input depends on the samples, where that is known. ``layouts`` has an entry for each
    tensor of the result; ``hx`` is what an LSTM last got as its initial states.
    """

    model: nn.Module
    batch: Any
    lengths: Tensor | None = None
    batch_dim: int | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    target: Any = None
    sample: Tensor | PackedSequence | None = None
    size: int | None = None
    steps: int | None = None
    hx: Any = None
    reading: set[int] | None = None
    layouts: list[Layout] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def found(self, pitfall: str, seen: str) -> None:
        """Add a finding, once."""
        finding = Finding(pitfall, seen)
        if finding not in self.findings:
            self.findings.append(finding)

    def has(self, *ids: str) -> bool:
        """Whether one of these pitfalls was found already."""
        return any(finding.pitfall in ids for finding in self.findings)

    @property
    def longest(self) -> int | None:
        """Steps of the longest sequence, where the lengths are known."""
        return None if self.lengths is None else int(self.lengths.max())

    @property
    def padded(self) -> bool:
        """Whether a sequence is known to be shorter than the batch."""
        return self.lengths is not None and self.steps is not None and bool((self.lengths < self.steps).any())

    def attempt(self, what: str, batch: Any = None, **options: Any) -> Run | None:
        """Run the module once more, on another batch or otherwise changed; None, and a word, where that fails."""
        try:
            return run(self.model, self.batch if batch is None else batch, **options)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.unchecked.append(f"{what}, since the module did not stand the experiment ({reason})")
            return None

    def diagnosis(self) -> Diagnosis:
        """The outcome."""
        return Diagnosis(tuple(self.findings), tuple(dict.fromkeys(self.unchecked)))
