"""Capture what code reads and writes through ``.data``, which an export does not see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_READ_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_WRITE_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class DataAsOperators(TorchFunctionMode):
    """Run ``.data`` as ``detach``, and an assignment to it as ``copy_`` where the tensor keeps its shape.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> memory = weight.data_ptr()
        >>> with DataAsOperators():
        ...     weight.data = weight.data * 0.5
        >>> weight.tolist(), weight.data_ptr() == memory
        ([0.5, 0.5], True)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        if func == _READ_DATA:
            return args[0].detach()
        if func == _WRITE_DATA and args[0].shape == args[1].shape and args[0].dtype == args[1].dtype:
            with torch.no_grad():
                args[0].copy_(args[1])
            return None
        return func(*args, **(kwargs or {}))
