"""How far a recipe has come, as plain values and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from secateur.criteria import Scores
from secateur.graph import ChannelGraph
from secateur.plan import PruningPlan
from secateur.recipes.cutting import Cut
from secateur.surgery import apply_plan
from secateur.training.events import EpochDone, Fact
from secateur.training.loop import FitState
from secateur.verify import Verification

PART = "recipe"
"""Name of this part of a journal."""


@dataclass(frozen=True)
class Resumed(Fact):
    """A recipe goes on where it was killed.

    Attributes:
        cuts: those that were made before.
    """

    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Standing:
    """How far a recipe has come.

    Attributes:
        cuts: made so far.
        fits: finished so far.
        step: number of the last step, cuts and empty steps alike.
        last: whether the last cut is made.
        tuned: whether the fine-tuning after the last cut so far is finished.
        scores: collected meanwhile.
        loader_epoch: number of the next pass over the training examples, of a loader that counts them.
    """

    cuts: Sequence[Cut]
    fits: Sequence[FitState]
    step: int
    last: bool
    tuned: bool
    scores: Scores | None
    loader_epoch: int | None

    def facts(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cuts": [_facts_of(cut) for cut in self.cuts],
            "fits": [[asdict(done) for done in fit.history] for fit in self.fits],
            "step": self.step,
            "last": self.last,
            "tuned": self.tuned,
            "scores": None if self.scores is None else self.scores.to_dict(),
            "loader_epoch": self.loader_epoch,
        }


def replay(facts: Mapping[str, Any], model: nn.Module, graph: ChannelGraph) -> tuple[Standing, ChannelGraph]:
    """Makes the cuts of an interrupted recipe again.

    Args:
        facts: of a :class:`Standing`.
        model: the network as it was before the first cut; cut in place. Its weights are those of the whole
            network still.
        graph: its channel graph.

    Returns:
        How far the recipe has come, and the graph of the network as it is now.
    """
    cuts = []
    for entry in facts["cuts"]:
        plan = PruningPlan(graph, {name: tuple(kept) for name, kept in entry["keep"].items()})
        apply_plan(model, plan, inplace=True)
        graph = graph.after(plan)
        cuts.append(Cut(entry["number"], entry["of"], plan, Verification.from_dict(entry["verification"])))
    fits = [FitState(history=[EpochDone(**done) for done in history]) for history in facts["fits"]]
    scores = None if facts["scores"] is None else Scores.from_dict(facts["scores"])
    standing = Standing(
        cuts, fits, facts["step"], facts["last"], facts["tuned"], scores, facts["loader_epoch"]
    )
    return standing, graph


def _facts_of(cut: Cut) -> dict[str, Any]:
    return {
        "number": cut.number,
        "of": cut.of,
        "keep": {name: list(kept) for name, kept in cut.plan.keep.items()},
        "verification": asdict(cut.verification),
    }
