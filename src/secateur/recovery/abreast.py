"""Several cuts in one pass: copies of the examples lie behind each other, each masked in its own way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.graph.masked import MaskedInterpreter, Removed
from secateur.graph.notes import Read
from secateur.graph.wiring import Pass


class AbreastInterpreter(MaskedInterpreter):
    """Masks the examples of each copy by a cut of its own.

    It is right where every value has the examples in its first dimension, those of one copy together, and
    nothing takes a statistic over cut channels. Whoever uses it holds one copy against a pass of its own.

    Args:
        forward: the forward pass, with a program for all copies together.
        removed: one row of removed slots for each copy, shape (copies, slots).
    """

    def __init__(self, forward: Pass, removed: Removed) -> None:
        super().__init__(forward, np.asarray(removed.any(axis=0)))
        self._each = removed

    def _masked_value(self, value: Tensor, read: Read) -> Tensor:
        keep = torch.from_numpy(~self._each[:, read.labels]).to(value.device)
        rows = keep.repeat_interleave(value.shape[0] // len(keep), 0)
        shape = [len(rows), *[1] * (value.dim() - 1)]
        shape[read.dim] = -1
        return torch.where(rows.view(shape), value, value.new_zeros(()))
