"""How far a fit has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from secateur.training.evaluate import Batches, Evaluation
from secateur.training.events import EpochDone
from secateur.training.journal import Entry
from secateur.training.snapshot import under

BEST = "best."
"""Before the names of the best weights, in a journal."""


@dataclass
class Fit:
    """The state of a fit: all that changes from step to step besides network and optimizer.

    Attributes:
        epoch: epochs finished.
        step: optimizer steps finished.
        evaluation: of the last epoch, if there is validation data.
        best: the best evaluation so far.
        best_epoch: its number.
        history: every epoch so far.
    """

    epoch: int = 0
    step: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_epoch: int = 0
    history: list[EpochDone] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """All but the weights, as plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "best": None if self.best is None else asdict(self.best),
            "best_epoch": self.best_epoch,
            "history": [asdict(done) for done in self.history],
        }


def recalled(entry: Entry) -> Fit:
    """A fit from its facts, with the best weights if they are kept beside them."""
    facts = entry.facts
    evaluation, best = (
        None if facts[name] is None else Evaluation(**facts[name]) for name in ("evaluation", "best")
    )
    history = [EpochDone(**done) for done in facts["history"]]
    weights = under(BEST, entry.tensors) or None
    return Fit(facts["epoch"], facts["step"], evaluation, best, facts["best_epoch"], history, weights)


def passes(batches: Batches) -> int | None:
    """How often batches have been gone through, where they count that in ``epoch``."""
    count = getattr(batches, "epoch", None)
    return count if type(count) is int else None


def set_passes(batches: Batches, number: int | None) -> None:
    """Lets batches begin with a certain pass, where they count them."""
    if number is not None and passes(batches) is not None:
        with suppress(AttributeError):  # a number that can only be read
            batches.epoch = number  # type: ignore[attr-defined]


@contextmanager
def at_pass(batches: Batches, number: int) -> Iterator[None]:
    """Lets batches begin with a certain pass in a block, and go on after it as if it had not been.

    >>> class Counting(list):
    ...     epoch = 7
    >>> batches = Counting()
    >>> with at_pass(batches, 2):
    ...     print(batches.epoch)
    2
    >>> batches.epoch
    7
    """
    before = passes(batches)
    set_passes(batches, number)
    try:
        yield
    finally:
        set_passes(batches, before)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, with a prefix to their names."""
    return {prefix + name: tensor.detach().clone() for name, tensor in tensors.items()}
