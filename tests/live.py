"""Bytes of tensors that are alive in a forward pass, watched from outside."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows every tensor that an operator returns until nobody holds it any more.

    Tensors that share memory count once. ``peak`` is the most that was alive behind any operator.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor) -> None:
        super().__init__()
        self._ignored = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._holders: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self.peak = 0
        for tensor in inputs:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        self.peak = max(self.peak, sum(self._sizes[key] for key, held in self._holders.items() if held))
        return result

    def _follow(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key not in self._ignored:
            self._holders[key] += 1
            self._sizes[key] = tensor.untyped_storage().nbytes()
            weakref.finalize(tensor, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self._holders[key] -= 1


def peak_bytes(model: nn.Module, inputs: Tensor) -> int:
    """The most bytes of activations alive at once in a forward pass without gradients, inputs included."""
    model.eval()
    with torch.no_grad(), LiveBytes(model, inputs) as watch:
        model(inputs)
    return watch.peak
