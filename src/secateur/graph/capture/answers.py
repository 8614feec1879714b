"""Note the Python values that code takes from tensors which depend on no input ("is this mask causal?").

``torch.export`` runs on tensors without values and refuses to look at them. Where the tensor is made of
constants and buffers alone, the answer is the same in every pass. It is noted in a real pass, by the line of
code that asks, and given again during the capture.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur._compat import tree_leaves

_QUESTIONS = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist"}
"""Methods that give a Python value."""

Answers = dict[tuple[str, int], list[Any]]
"""What was answered, in order, by file and line of the code that asked."""


class Asking(TorchFunctionMode):
    """Note what code asks of tensors that depend on no input and no parameter.

    Args:
        tensors: the inputs and parameters.

    Attributes:
        answers: what was answered.

    Example:
        >>> x = torch.ones(2)
        >>> with Asking([x]) as asking:
        ...     found = bool((torch.zeros(2) == 0).all()), bool((x == 0).all())
        >>> found, list(asking.answers.values())
        ((True, False), [[True]])
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.answers: Answers = defaultdict(list)
        self._moving = {id(tensor): tensor for tensor in tensors}  # held, so that no other gets its id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        result = func(*args, **(kwargs or {}))
        moves = any(id(leaf) in self._moving for leaf in tree_leaves((args, kwargs)))
        if moves:
            changed = [leaf for leaf in (*tree_leaves(result), *args[:1]) if isinstance(leaf, Tensor)]
            self._moving |= {id(leaf): leaf for leaf in changed}
        elif getattr(func, "__name__", "") in _QUESTIONS:
            self.answers[_asker()].append(result)
        return result


class Answering(TorchFunctionMode):
    """Give the answers that were noted to code that asks tensors without values."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._left = {place: deque(given) for place, given in answers.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        if getattr(func, "__name__", "") in _QUESTIONS:
            left = self._left.get(_asker())
            if left:
                return left.popleft()
        return func(*args, **(kwargs or {}))


def answers_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answers:
    """Run a network once and note what its code asks of tensors that depend on no input.

    Args:
        model: the network, in the mode that it is captured in; the caller puts back what the pass changes.
        args: its positional arguments.
        kwargs: its named arguments.
    """
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with torch.no_grad(), Asking([*given, *model.parameters()]) as asking:
        model(*args, **kwargs)
    return dict(asking.answers)


def _asker() -> tuple[str, int]:
    """Find file and line of the nearest frame outside of this file, of torch's modes and of its export."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_machinery(frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_machinery(file: str) -> bool:
    return file == __file__ or any(
        part in file
        for part in (
            "torch/_export",
            "torch/overrides",
            "torch/utils/_",
            "torch/_dynamo",
            "torch/fx",
            "torch/_tensor",
        )
    )
