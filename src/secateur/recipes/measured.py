"""Store measurements of a network before its first cut, so that they can be used for other budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.errors import UsageError
from secateur.graph.cutting.tensors import named_tensors


@dataclass(frozen=True)
class Measured:
    """Scores of a network, and its finished width curves.

    They do not depend on the budget: with them, a plan for another budget takes a second.

    Attributes:
        network: the :func:`fingerprint` of the network.
        scores: of its channels.
        curves: of its groups, as far as they are measured; ``None`` if none were requested.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> kept = Measured(fingerprint(net), Scores("magnitude", {"0": torch.tensor([1.0, 2.0])}))
        >>> kept.check(net, "magnitude")  # it would say so if the network had other weights
    """

    network: str
    scores: Scores
    curves: WidthCurves | None = None

    def check(self, model: nn.Module, criterion: str) -> None:
        """Refuse measurements of another network or by another criterion.

        Args:
            model: the network that is to be cut.
            criterion: name of the requested criterion.

        Raises:
            UsageError: the network has other weights, or the scores are of another criterion.
        """
        if self.network != fingerprint(model):
            raise UsageError(
                "the measurements belong to a network with other weights: measure this one, or start from "
                "the network that was measured"
            )
        if self.scores.criterion != criterion:
            raise UsageError(
                f"the measurements are {self.scores.criterion} scores, but {criterion} is requested: use "
                "the same criterion, or measure this network without them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; :meth:`from_dict` reads them back."""
        curves = None if self.curves is None else self.curves.to_dict()
        return {"network": self.network, "scores": self.scores.to_dict(), "curves": curves}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """Read back what :meth:`to_dict` returned.

        Raises:
            UsageError: the data is something else.

        >>> scores = Scores("magnitude", {"0": torch.tensor([1.0, 2.0])})
        >>> kept = Measured(fingerprint(nn.Linear(1, 2)), scores)
        >>> Measured.from_dict(kept.to_dict()) == kept
        True
        """
        try:
            curves = None if data["curves"] is None else WidthCurves.from_dict(data["curves"])
            return cls(str(data["network"]), Scores.from_dict(data["scores"]), curves)
        except (KeyError, TypeError) as error:
            raise UsageError(f"these are not measurements of a network: there is no {error}") from error


def fingerprint(model: nn.Module) -> str:
    """Compute a digest of names, shapes and bits of all parameters and buffers.

    Args:
        model: the network.

    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> fingerprint(one) == fingerprint(other), fingerprint(one) == fingerprint(one)
    (False, True)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model).items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
