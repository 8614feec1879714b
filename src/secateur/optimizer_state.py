"""Cut the state of an optimizer like the parameters that it belongs to."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import UsageError
from secateur.formats import listed
from secateur.graph.cutting.tensors import cut_tensor
from secateur.graph.groups import IntArray

Kept = Mapping[int, IntArray]
"""Positions of a tensor that stay, by dimension."""

_Path = tuple[Any, ...]
_Layout = tuple[int | None, ...]
"""For each dimension of a state tensor, that of its parameter, or None if it is reduced to 1."""

_NAMED = 5  # parameters that a warning lists


def check_optimizer(optimizer: Optimizer | None, model: nn.Module) -> None:
    """Refuse an optimizer without any parameter of a network: it would train nothing.

    Args:
        optimizer: may contain only some of the parameters, or be ``None``.
        model: the network.

    Raises:
        UsageError: it contains none of them.

    Example:
        >>> from torch.optim import SGD
        >>> check_optimizer(SGD(nn.Linear(2, 2).parameters(), 0.1), nn.Linear(2, 2))
        Traceback (most recent call last):
        secateur.errors.UsageError: optimizer: SGD contains none of the parameters of Linear...
    """
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise UsageError(
            f"optimizer: {type(optimizer).__name__} contains none of the parameters of "
            f"{type(model).__name__}. "
            "It belongs to another network, or an earlier cut has moved it to a smaller copy: continue with "
            "that copy, or make a new optimizer over model.parameters()"
        )


@dataclass(frozen=True)
class CutState:
    """The state of an optimizer after a cut, before it is put in place.

    Attributes:
        entries: new state by parameter; None if it must start again. Other parameters keep their state.
        reset: names of the parameters whose state starts again, with the key that could not be cut.
        removed: parameters that leave the optimizer, by their id.
    """

    entries: dict[Tensor, Any] = field(default_factory=dict)
    reset: dict[str, str] = field(default_factory=dict)
    removed: dict[int, Tensor] = field(default_factory=dict)

    def warn(self) -> None:
        """Warn about state that is reset."""
        if not self.reset:
            return
        named = [f"'{name}' (key '{key}')" for name, key in self.reset.items()]
        warnings.warn(
            f"the optimizer's state of {listed(named, _NAMED)} starts again: its shape does "
            "not show how to cut it",
            stacklevel=4,
        )

    def install(self, optimizer: Optimizer, moved: Mapping[Tensor, Tensor]) -> Callable[[], None]:
        """Give an optimizer this state, and other parameters.

        Args:
            optimizer: changed in place.
            moved: new parameters for old ones.

        Returns:
            A function that restores the previous state and parameters, as the same objects.
        """
        state: dict[Any, Any] = optimizer.state
        items = list(state.items())
        groups = [(group["params"], list(group["params"])) for group in optimizer.param_groups]
        # LBFGS caches the number of values of its parameters.
        counted = vars(optimizer).get("_numel_cache")

        def undo() -> None:
            state.clear()
            state.update(items)
            for held, before in groups:
                held[:] = before
            if counted is not None:
                vars(optimizer)["_numel_cache"] = counted

        state.clear()
        for key, entry in items:
            entry = self.entries.get(key, entry) if isinstance(key, Tensor) else entry
            if entry is not None:
                state[moved.get(key, key) if isinstance(key, Tensor) else key] = entry
        for held, before in groups:
            stay = (parameter for parameter in before if id(parameter) not in self.removed)
            held[:] = [moved.get(parameter, parameter) for parameter in stay]
        if counted is not None:
            vars(optimizer)["_numel_cache"] = None
        return undo


def cut_state(
    optimizer: Optimizer,
    parameters: Mapping[str, Tensor],
    kept: Mapping[str, Kept],
    removed: Collection[str] = (),
) -> CutState:
    """Cut the state of an optimizer like the parameters that it belongs to.

    A tensor is cut with its parameter if its shape shows how: the shape of the parameter, or that shape with
    some dimensions reduced to 1 or left out (the row and column statistics of Adafactor). If any tensor in
    the state of a cut parameter has another shape, its whole state starts again. Scalars stay.

    Args:
        optimizer: not changed.
        parameters: parameters of the network by name, before the cut.
        kept: the kept indices of those that are cut.
        removed: names of the parameters that are removed as a whole; their state goes.

    Returns:
        The new state.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    everything: dict[Any, Any] = optimizer.state
    state = {key: entry for key, entry in everything.items() if isinstance(key, Tensor)}
    layouts = _common_layouts(state)
    together = _sizes_together(optimizer, names, {*kept, *removed})
    cut = CutState(removed={id(parameters[name]): parameters[name] for name in removed})
    for parameter, entry in state.items():
        name = names.get(id(parameter), "a parameter of another network")
        if name in removed:
            cut.entries[parameter] = None
            continue
        dims = kept.get(name, {})
        cuts: dict[int, Kept] = {}
        for path, value in _tensors(entry):
            known = layouts[path, parameter.dim()]
            found = _cut_of(_layouts(value, parameter) & known, dims) if dims else {}
            if found is None or (not known and together.get(id(parameter)) in value.shape):
                cut.entries[parameter] = None
                cut.reset.setdefault(name, ".".join(map(str, path)))
                break
            cuts[id(value)] = found
        else:
            if any(cuts.values()):
                cut.entries[parameter] = _cut_entry(entry, cuts)
    return cut


def _common_layouts(state: Mapping[Tensor, Any]) -> dict[tuple[_Path, int], set[_Layout]]:
    """Find, by the place in the state and the number of dimensions, the layouts that fit every parameter.

    No layout fits a square factor of a matrix, even if its shape equals that of a square parameter by chance.
    A row statistic of a square parameter may belong to either dimension; that of another parameter shows
    which.
    """
    common: dict[tuple[_Path, int], set[_Layout]] = {}
    foreign = set()
    for parameter, entry in state.items():
        for path, value in _tensors(entry):
            found = _layouts(value, parameter)
            key = (path, parameter.dim())
            common[key] = common.get(key, found) & found
            if not found:
                foreign.add(path)
    return {key: set() if key[0] in foreign else found for key, found in common.items()}


def _sizes_together(
    optimizer: Optimizer, names: Mapping[int, str], changed: Collection[str]
) -> dict[int, int]:
    """Count, by the id of a parameter, the values of all parameters of its group, if one of them changes.

    LBFGS keeps vectors over all of them, in the state of the first.
    """
    sizes: dict[int, int] = {}
    for group in optimizer.param_groups:
        if any(names.get(id(parameter)) in changed for parameter in group["params"]):
            total = sum(parameter.numel() for parameter in group["params"])
            sizes |= {id(parameter): total for parameter in group["params"]}
    return sizes


def _tensors(entry: Any, path: _Path = ()) -> Iterator[tuple[_Path, Tensor]]:
    """Yield the tensors of more than one value in the state of a parameter, with their place in it."""
    if isinstance(entry, Tensor):
        if entry.numel() > 1:
            yield path, entry
    elif isinstance(entry, dict):
        for key, value in entry.items():
            yield from _tensors(value, (*path, key))
    elif isinstance(entry, list | tuple | deque):
        for index, value in enumerate(entry):
            yield from _tensors(value, (*path, index))


def _cut_entry(entry: Any, cuts: Mapping[int, Kept]) -> Any:
    """Cut the tensors in the state of a parameter; ``cuts`` are given by the ids of tensors."""
    if isinstance(entry, Tensor):
        cut = cuts.get(id(entry))
        return cut_tensor(entry, cut) if cut else entry
    if isinstance(entry, tuple):
        items = [_cut_entry(value, cuts) for value in entry]
        return entry._make(items) if hasattr(entry, "_make") else type(entry)(items)
    if isinstance(entry, dict | list | deque):
        new = copy.copy(entry)
        for key, value in entry.items() if isinstance(entry, dict) else enumerate(entry):
            new[key] = _cut_entry(value, cuts)
        return new
    return entry


def _layouts(value: Tensor, parameter: Tensor) -> set[_Layout]:
    """List the ways in which a tensor may correspond to a parameter; none if it does not.

    >>> import torch
    >>> _layouts(torch.zeros(8, 1), torch.zeros(8, 4)), sorted(_layouts(torch.zeros(4), torch.zeros(4, 4)))
    ({(0, None)}, [(0,), (1,)])
    """
    if type(value) not in (Tensor, nn.Parameter):
        return set()  # a tensor of another kind, such as a quantised one
    found: set[_Layout] = set()
    for dims in combinations(range(parameter.dim()), value.dim()):
        choices = [
            [dim] * (size == parameter.shape[dim]) + [None] * (size == 1)
            for dim, size in zip(dims, value.shape, strict=True)
        ]
        found |= set(product(*choices))
    return found


def _cut_of(layouts: Iterable[_Layout], kept: Kept) -> Kept | None:
    """Find the kept indices of a tensor by dimension; ``None`` if its layouts differ, or there is none."""
    cuts = [
        {place: kept[dim] for place, dim in enumerate(layout) if dim is not None and dim in kept}
        for layout in layouts
    ]
    first = cuts[0] if cuts else None
    return first if first is not None and all(_same(first, other) for other in cuts) else None


def _same(one: Kept, other: Kept) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[dim], other[dim]) for dim in one)
