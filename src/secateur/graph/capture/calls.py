"""Describe with which arguments modules are called, and what they return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        arguments: shapes of the tensors among the arguments, by position or name.
        result: shape of the first tensor that was returned; ``None`` if neither a tensor nor a tuple with one
            was returned.
        entry: where a tuple was returned, the place of that tensor in it, and the length of the tuple.
    """

    arguments: Mapping[int | str, Shape]
    result: Shape | None
    entry: tuple[int, int] | None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> ModuleCall:
        """Describe a call.

        Args:
            args: its positional arguments.
            kwargs: its named arguments.
            output: what was returned.

        Example:
            >>> import torch
            >>> ModuleCall.of((torch.ones(2, 3),), {"mask": None}, (torch.ones(2, 4), None))
            ModuleCall(arguments={0: (2, 3)}, result=(2, 4), entry=(0, 2))
        """
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        shapes = {key: _shape(item) for key, item in given if isinstance(item, Tensor)}
        if isinstance(output, Tensor):
            return cls(shapes, _shape(output), None)
        if type(output) is tuple:
            for place, item in enumerate(output):
                if isinstance(item, Tensor):
                    return cls(shapes, _shape(item), (place, len(output)))
        return cls(shapes, None, None)


def _shape(tensor: Tensor) -> Shape:
    return tuple(map(int, tensor.shape))  # plain integers, also where sizes remember where they come from
