"""Convert the state of a running recipe to plain values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from secateur.criteria import Scores
from secateur.graph import ChannelGraph
from secateur.plan import PruningPlan
from secateur.recipes.cutting import Cut
from secateur.surgery import apply_plan
from secateur.training.events import EpochDone
from secateur.training.loop import FitState
from secateur.verification import Verification

PART = "recipe"
"""Name of this part of a journal."""


@dataclass
class RecipeState:
    """The progress of a recipe.

    Attributes:
        graph: of the network after the cuts so far.
        cuts: made so far.
        fits: phases of fine-tuning that are finished.
        step: number of the last step; a step that was reached before makes no cut.
        last: whether the last cut is made.
        tuned: whether the fine-tuning after the last cut so far is finished.
        scores: collected during that fine-tuning, for the next cut.
    """

    graph: ChannelGraph
    cuts: list[Cut] = field(default_factory=list)
    fits: list[FitState] = field(default_factory=list)
    step: int = 0
    last: bool = False
    tuned: bool = True
    scores: Scores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "cuts": [
                {
                    "number": cut.number,
                    "of": cut.of,
                    "keep": {name: list(kept) for name, kept in cut.plan.keep.items()},
                    "without": list(cut.plan.without),
                    "verification": asdict(cut.verification),
                }
                for cut in self.cuts
            ],
            "fits": [[asdict(done) for done in fit.history] for fit in self.fits],
            "step": self.step,
            "last": self.last,
            "tuned": self.tuned,
            "scores": None if self.scores is None else self.scores.to_dict(),
        }

    @classmethod
    def repeated(cls, data: Mapping[str, Any], model: nn.Module, graph: ChannelGraph) -> RecipeState:
        """Repeat the cuts of an interrupted recipe.

        Args:
            data: what :meth:`to_dict` returned.
            model: the network before the first cut; cut in place. Its weights remain those of the
                whole network.
            graph: its channel graph.

        Returns:
            The state, with the graph of the present network.
        """
        cuts = []
        for entry in data["cuts"]:
            keep = {name: tuple(kept) for name, kept in entry["keep"].items()}
            plan = PruningPlan(graph, keep, tuple(entry["without"]))
            apply_plan(model, plan, inplace=True)
            graph = graph.after(plan)
            verification = Verification.from_dict(entry["verification"])
            cuts.append(Cut(entry["number"], entry["of"], plan, verification))
        return cls(
            graph=graph,
            cuts=cuts,
            fits=[FitState(history=[EpochDone(**done) for done in history]) for history in data["fits"]],
            step=data["step"],
            last=data["last"],
            tuned=data["tuned"],
            scores=None if data["scores"] is None else Scores.from_dict(data["scores"]),
        )
