"""Record the Python values (``bool``, ``item``) that code reads from tensors that the inputs do not change.

``torch.export`` runs on tensors without values and refuses to look at them. The answer is noted in a real
pass, by the line of code that asks, and given again during the capture, where it is the same in every pass:
where the tensor is made of constants and buffers alone; where it says whether numbers are finite; and where
it is made of whole numbers or truth values that are all equal, such as a mask that hides nothing. In the last
case later inputs must hold the same value, which the program notes.
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
from secateur.exact import SameNumbers
from secateur.graph.capture.covariance import WRITTEN_OUT

_FINITENESS = {"isfinite", "isnan", "isinf", "isposinf", "isneginf"}
"""Operators that tell finite numbers from others."""

_SUMMARIES = {"all", "any", "logical_not", "logical_or", "logical_and", "bitwise_not", "__invert__", "sum"}
"""Operators that sum up what such operators found."""

_QUESTIONS = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist"}
"""Methods that give a Python value."""

Answers = dict[tuple[str, int], list[Any]]
"""What was answered, in order, by file and line of the code that asked."""


class RecordAnswers(TorchFunctionMode):
    """Record the Python values of tensors that depend on no input and no parameter, and of finiteness.

    Args:
        tensors: the inputs and parameters.
        equal: inputs of which all values are equal.

    Attributes:
        answers: what was answered.
        used: whether an answer depends on ``equal``.
        replaced: whether a function was called that asks for values itself, and can be replaced.

    Example:
        >>> x = torch.ones(2)
        >>> with RecordAnswers([x]) as recording:
        ...     found = bool((torch.zeros(2) == 0).all()), bool((x == 0).all())
        >>> found, list(recording.answers.values())
        ((True, False), [[True]])
    """

    def __init__(self, tensors: Iterable[Tensor], equal: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.answers: Answers = defaultdict(list)
        self.used = self.replaced = False
        self._equal = {id(tensor): tensor for tensor in equal}
        self._finite: dict[int, Tensor] = {}
        self._moving = {id(tensor): tensor for tensor in tensors}  # held, so that no other gets its id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        result = func(*args, **(kwargs or {}))
        self.replaced = self.replaced or func in WRITTEN_OUT
        name, given = getattr(func, "__name__", ""), {id(leaf) for leaf in tree_leaves((args, kwargs))}
        changed = [leaf for leaf in (*tree_leaves(result), *args[:1]) if isinstance(leaf, Tensor)]
        moves = not given.isdisjoint(self._moving)
        if name in _FINITENESS or (name in _SUMMARIES and not given.isdisjoint(self._finite)):
            self._finite |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        if name in _QUESTIONS and (not moves or not given.isdisjoint(self._finite)):
            self.answers[_asker()].append(result)
            self.used = self.used or not (moves or given.isdisjoint(self._equal))
        elif moves:
            self._moving |= {id(leaf): leaf for leaf in changed}
        elif not given.isdisjoint(self._equal):
            self._equal |= {id(leaf): leaf for leaf in changed}
        return result


class ReplayAnswers(TorchFunctionMode):
    """Give the answers that were noted to code that asks tensors without values.

    Functions that ask themselves are replaced by others.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._left = {place: deque(given) for place, given in answers.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        func = WRITTEN_OUT.get(func, func)
        if getattr(func, "__name__", "") in _QUESTIONS:
            left = self._left.get(_asker())
            if left:
                return left.popleft()
        return func(*args, **(kwargs or {}))


def answers_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Answers | None, bool]:
    """Run a network once and record the values that its code reads from tensors the inputs do not change.

    Args:
        model: the network, in the mode that it is captured in; the caller puts back what the pass changes.
        args: its positional arguments.
        kwargs: its named arguments.

    Returns:
        The answers, ``None`` if there are none and nothing is replaced, and whether they hold only for inputs
        with the same equal values.
    """
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    equal = [leaf for leaf in given if equal_value(leaf) is not None]
    moving = [leaf for leaf in given if equal_value(leaf) is None]
    # Code that draws numbers to decide what it skips must decide as in the passes of the check.
    with torch.no_grad(), SameNumbers(), RecordAnswers([*moving, *model.parameters()], equal) as recording:
        model(*args, **kwargs)
    known = bool(recording.answers) or recording.replaced
    return dict(recording.answers) if known else None, recording.used


def equal_value(leaf: Any) -> int | None:
    """Read the value of whole numbers or truth values that are all equal; ``None`` for other tensors.

    >>> equal_value(torch.ones(2, dtype=torch.bool)), equal_value(torch.ones(2))
    (1, None)
    """
    if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.layout is not torch.strided:
        return None
    if leaf.is_floating_point() or leaf.is_complex():
        return None
    first = leaf.flatten()[0]
    return int(first) if bool((leaf == first).all()) else None


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
