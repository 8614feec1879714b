"""Define the callbacks that receive reports while pruning runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secateur.training.events import TrainingCallback

if TYPE_CHECKING:
    from secateur.budget import WidthCurves
    from secateur.criteria import Scores
    from secateur.recipes.cutting import Cut
    from secateur.recipes.latency_tuner import LatencyFit
    from secateur.recipes.search import Tried


class Callback(TrainingCallback):
    """Receive reports of pruning. The methods do nothing; override those that you need.

    Besides the methods below there are those of training: ``on_progress(progress)``, ``on_note(text)`` and
    ``on_epoch_end(epoch)``.

    Example:
        >>> class Print(Callback):
        ...     def on_cut(self, cut):
        ...         print(f"{cut.plan.channels_removed} channels removed")
        >>> import torch
        >>> import secateur as sec
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = sec.prune(net, torch.randn(2, 4), sec.Budget(macs=0.5), callbacks=[Print()])
        4 channels removed
    """

    def on_scores(self, scores: Scores) -> None:
        """Called with the scores of the whole network."""

    def on_curves(self, curves: WidthCurves) -> None:
        """Called with the width curves of the whole network so far, after each that is measured."""

    def on_cut(self, cut: Cut) -> None:
        """Called after each cut, with its plan and its verification."""

    def on_latency(self, fit: LatencyFit) -> None:
        """Called before the last cut, with the measured time of its plan, if a budget limits latency."""

    def on_resume(self, cuts: Sequence[Cut]) -> None:
        """Called with the cuts that an interrupted run had made, when it is resumed."""

    def on_try(self, tried: Tried) -> None:
        """Called after each try of a search for the smallest network."""
