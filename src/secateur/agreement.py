"""How well a criterion guesses what the oracle measured (arXiv 1611.06440, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from secateur.criteria import Scores
from secateur.errors import UsageError
from secateur.oracle import Oracle


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of a criterion with the oracle.

    Attributes:
        criterion: name of the criterion.
        groups: within each group; groups of equal scores, or with fewer than three channels, have none.
        raw: over the channels of all groups together, scores as they are.
        normalized: the same after ℓ2 normalisation per group.

    Example:
        >>> print(Agreement("taylor", {"a": 0.5, "b": 0.9}, raw=0.6, normalized=0.65))
        taylor: 0.700 within groups, 0.600 over all channels, 0.650 normalised
    """

    criterion: str
    groups: Mapping[str, float]
    raw: float
    normalized: float

    @property
    def per_group(self) -> float:
        """Mean over the groups; NaN if there are none."""
        return float(np.mean(list(self.groups.values()))) if self.groups else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.criterion}: {self.per_group:.3f} within groups, {self.raw:.3f} over all channels, "
            f"{self.normalized:.3f} normalised"
        )


def agreement(oracle: Oracle, scores: Scores) -> Agreement:
    """Compares scores with the absolute changes of the loss (arXiv 1611.06440, section 3.2).

    Args:
        oracle: measured changes; channels that are not measured yet do not count.
        scores: of a criterion, for the same network.

    Returns:
        The rank correlations, over the groups that have both.

    Raises:
        UsageError: no group has both, or a group has another number of channels.

    Example:
        >>> import torch
        >>> found = Oracle({"a": torch.tensor([0.1, -0.5, 0.3])}, loss=1.0, examples=4)
        >>> agreement(found, Scores("guess", {"a": torch.tensor([1.0, 9.0, 4.0])})).per_group
        1.0
    """
    pairs = {}
    levelled = scores.normalized("l2")
    for name in oracle:
        if name not in scores:
            continue
        truth = oracle[name].abs().numpy()
        if len(truth) != len(scores[name]):
            raise UsageError(f"group '{name}' has {len(truth)} channels, but {len(scores[name])} scores")
        known = ~np.isnan(truth)
        pairs[name] = truth[known], scores[name].numpy()[known], levelled[name].numpy()[known]
    if not pairs:
        raise UsageError(f"the oracle and {scores.criterion} have no group in common")
    truth, raw, normalized = (np.concatenate(parts) for parts in zip(*pairs.values(), strict=True))
    within = {name: _spearman(part[0], part[1]) for name, part in pairs.items()}
    return Agreement(
        scores.criterion,
        {name: value for name, value in within.items() if value is not None},
        _spearman(truth, raw) or 0.0,
        _spearman(truth, normalized) or 0.0,
    )


def _spearman(
    one: np.ndarray[tuple[int], np.dtype[np.float64]], other: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float | None:
    """Rank correlation; ``None`` where it means nothing."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
