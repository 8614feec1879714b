"""Hold one score per channel and per residual branch, and convert scores to text and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from secateur.criteria.normalise import normalise
from secateur.errors import UsageError
from secateur.formats import table


class Scores(Mapping[str, Tensor]):
    """One score per channel for every group that the criterion could score; an immutable mapping.

    ``scores[group.name]`` is a float32 CPU tensor of shape ``(channels,)``, larger for channels
    that matter more. Scores are raw, as the criterion defines them, until :meth:`normalized`.
    Groups that could not be scored are left out, with the reason in :attr:`unscored`, so that
    nothing is cut by a score that was not measured.

    Attributes:
        criterion: name of the criterion.
        unscored: for each prunable group that was left out, the reason in words.
        normalization: how the scores were normalised, ``"none"`` while they are raw.
        branches: scores of residual branches by name, in the unit of the raw scores of channels; empty if
            the criterion does not score them. They are never normalised.

    >>> scores = Scores("magnitude", {"conv1": torch.tensor([3.0, 4.0])})
    >>> scores["conv1"]
    tensor([3., 4.])
    >>> scores.normalized("l2")["conv1"]
    tensor([0.6000, 0.8000])
    """

    def __init__(
        self,
        criterion: str,
        values: Mapping[str, Tensor],
        unscored: Mapping[str, str] | None = None,
        normalization: str = "none",
        branches: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the values.

        Args:
            criterion: name of the criterion.
            values: for each group name, the scores of its channels, shape ``(channels,)``.
            unscored: for each group that was left out, the reason.
            normalization: how the values were normalised.
            branches: scores of residual branches by name.

        Raises:
            UsageError: a score is NaN or infinite, or the values of a group are not a vector.
        """
        self.criterion = criterion
        self.normalization = normalization
        self.unscored: Mapping[str, str] = MappingProxyType(dict(unscored or {}))
        self._values = {name: _checked(criterion, name, tensor) for name, tensor in values.items()}
        self.branches: Mapping[str, float] = MappingProxyType(
            {name: float(value) for name, value in (branches or {}).items()}
        )
        for name, value in self.branches.items():
            if not math.isfinite(value):
                raise UsageError(
                    f"the {criterion} score of residual branch {name!r} is {value}; check the loss and the "
                    "weights, or use a smaller learning rate or float32"
                )

    def __getitem__(self, name: str) -> Tensor:
        """Copy the scores of one group, shape ``(channels,)``."""
        if name in self._values:
            return self._values[name].clone()
        if name in self.unscored:
            raise KeyError(f"group {name!r} has no {self.criterion} scores: {self.unscored[name]}")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def normalized(self, how: str = "l2") -> Scores:
        """Normalise the scores of each group.

        Args:
            how: ``l2``, ``l1``, ``max``, ``min-max`` or ``none``,
                see :func:`secateur.criteria.normalise.normalise`.

        Returns:
            New scores; a group of zeros stays zero.

        Raises:
            UsageError: ``how`` is unknown.
        """
        values = normalise(self._values, how)
        return Scores(self.criterion, values, self.unscored, how, self.branches)

    def to_dict(self) -> dict[str, Any]:
        """Convert to values for JSON; :meth:`from_dict` reads them."""
        return {
            "criterion": self.criterion,
            "normalization": self.normalization,
            "scores": {name: tensor.tolist() for name, tensor in self._values.items()},
            "unscored": dict(self.unscored),
            "branches": dict(self.branches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """Read what :meth:`to_dict` returned.

        >>> scores = Scores("random", {"fc": torch.tensor([0.1, 0.2])})
        >>> Scores.from_dict(scores.to_dict()) == scores
        True
        """
        try:
            values = {name: torch.tensor(row, dtype=torch.float32) for name, row in data["scores"].items()}
            return cls(data["criterion"], values, data["unscored"], data["normalization"], data["branches"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"these are no scores that Scores.to_dict() wrote: {error}") from error

    def __repr__(self) -> str:
        channels = sum(map(len, self._values.values()))
        branches = f", {len(self.branches)} branches" if self.branches else ""
        return f"Scores({self.criterion!r}, {len(self)} groups, {channels} channels{branches})"

    def __str__(self) -> str:
        """Format a table: for each group its channels and the least, median and largest score."""
        normalization = "raw" if self.normalization == "none" else self.normalization
        rows = [("group", "channels", "least", "median", "largest")]
        for name, values in self._values.items():
            least, median, largest = (f"{float(f(values)) if len(values) else 0.0:.4g}" for f in _SUMMARY)
            rows.append((name, str(len(values)), least, median, largest))
        lines = [f"{self.criterion} scores ({normalization})", *table(rows)]
        lines += [f"{name}: not scored, {reason}" for name, reason in self.unscored.items()]
        if self.branches:
            branches = [(name, f"{value:.4g}") for name, value in self.branches.items()]
            lines += table([("residual branch", "score"), *branches])
        return "\n".join(lines)


_SUMMARY = (torch.min, torch.median, torch.max)


def _checked(criterion: str, name: str, tensor: Tensor) -> Tensor:
    """Copy the scores of one group as float32, or raise an error that names the group."""
    values = tensor.detach().to("cpu", torch.float32, copy=True)
    if values.ndim != 1:
        raise UsageError(
            f"the {criterion} scores of group {name!r} have shape {tuple(values.shape)}; "
            "give one score per channel"
        )
    bad = int((~values.isfinite()).sum())
    if bad:
        raise UsageError(
            f"{bad} of {len(values)} {criterion} scores of group {name!r} are NaN or infinite; "
            "check the loss and the weights, or use a smaller learning rate or float32"
        )
    return values
