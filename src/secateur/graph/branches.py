"""Find residual branches: values that are added to a value that they were computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from torch import nn
from torch.fx import Node

from secateur.errors import UsageError
from secateur.graph.additions import Addition, Dataflow, shape_of
from secateur.graph.capture.calls import ModuleCall
from secateur.graph.capture.nodes import module_paths
from secateur.graph.capture.operators import channels_of_layer
from secateur.graph.capture.program import Program, canonical_names
from secateur.graph.fused_encoders import KEEPS_FUSED, nested_layers, unfused
from secateur.graph.groups import distinct_name

_MOST = 1 << 10
"""A bound of dimensions and of lengths of tuples, for data of any origin."""


class Substitute(Enum):
    """What takes the place of a module of a removed branch."""

    PASS = "pass"
    """A module that returns an argument."""
    ZEROS = "zeros"
    """A module that returns zeros of the shape of an argument."""


@dataclass(frozen=True)
class Replacement:
    """A module that a removed branch loses, and what takes its place.

    Attributes:
        path: of the module.
        substitute: what takes its place.
        argument: position or name of the argument that the substitute returns, or whose shape it returns.
        entry: place of the result in the tuple that the module returns, and the length of the tuple; all
            other entries become ``None``. ``None`` if the module returns a tensor.
        single: dimensions of the zeros that have size one, and are broadcast where they are read.
        copied: whether a copy of the argument is returned, since something writes to the result.
    """

    path: str
    substitute: Substitute
    argument: int | str = 0
    entry: tuple[int, int] | None = None
    single: tuple[int, ...] = ()
    copied: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON; ``from_dict`` reads them back."""
        return {**asdict(self), "substitute": self.substitute.value}

    @classmethod
    def from_dict(cls, data: Any) -> Replacement:
        """Read what ``to_dict`` returned, from data of any origin.

        Raises:
            UsageError: the data are of another form.

        Example:
            >>> item = Replacement("block.bn2", Substitute.ZEROS)
            >>> Replacement.from_dict(item.to_dict()) == item
            True
        """
        match data:
            case {
                "path": str(path),
                "substitute": "pass" | "zeros" as kind,
                "argument": (int() | str()) as argument,
                "entry": entry,
                "single": [*single] | (*single,),
                "copied": bool(copied),
                **rest,
            } if not rest and path and not isinstance(argument, bool):
                numbers = [*single, *(entry or ())] if isinstance(entry, list | tuple | None) else [None]
                plain = all(type(item) is int and 0 <= item < _MOST for item in numbers)
                if plain and (entry is None or (len(entry) == 2 and entry[0] < entry[1])):
                    pair = None if entry is None else (entry[0], entry[1])
                    return cls(path, Substitute(kind), argument, pair, tuple(single), copied)
        raise UsageError("the replaced modules are of an unknown form")


@dataclass(frozen=True)
class ResidualBranch:
    """A branch ``f`` of ``x + f(x)``, which can be removed as a whole: its value is then zero.

    Attributes:
        name: path of the smallest module that computes the branch, unique among the branches.
        replacements: the modules that are replaced if the branch is removed, in the order of the network.
        nodes: the operators of the evaluation-mode program that do not run if the branch is removed.
        remaining: operators that belong to the branch and still run, on zeros or on the stream, since they
            are in the code of a module that stays.
        tensors: parameters and buffers that are removed with the branch.
        idle: parameters and buffers that only the branch reads and that stay, since the module that holds
            them computes more than the branch.
        stream: name of the operator that computes ``x`` in the evaluation-mode program.
        value: name of the operator that computes ``f(x)``.
        addition: name of the operator that adds them.
        settings: attributes of other modules that change if the branch is removed: path, name and value.
        parent: name of the branch that this one is a part of, ``None`` if there is none.
        reason: why it cannot be removed, in words; ``None`` if it may be removed.
    """

    name: str
    replacements: tuple[Replacement, ...] = field(repr=False)
    nodes: tuple[str, ...] = field(repr=False)
    remaining: tuple[str, ...] = field(repr=False)
    tensors: tuple[str, ...] = field(repr=False)
    idle: tuple[str, ...] = field(repr=False)
    stream: str = field(repr=False)
    value: str = field(repr=False)
    addition: str = field(repr=False)
    settings: tuple[tuple[str, str, int], ...] = field(repr=False)
    parent: str | None = None
    reason: str | None = None

    @property
    def prunable(self) -> bool:
        """Return whether the branch may be removed."""
        return self.reason is None

    @property
    def modules(self) -> tuple[str, ...]:
        """List the paths of the modules that are replaced, in the order of the network."""
        return tuple(item.path for item in self.replacements)


def with_parts(branches: Sequence[ResidualBranch], names: Iterable[str]) -> frozenset[str]:
    """Add the branches that are parts of given ones.

    Args:
        branches: all branches of a network, in its order.
        names: of some of them.
    """
    found = set(names)
    for branch in reversed(branches):  # what a branch is a part of is added after it
        if branch.parent in found:
            found.add(branch.name)
    return frozenset(found)


def outermost(branches: Sequence[ResidualBranch], names: Iterable[str]) -> frozenset[str]:
    """Leave out the branches that are parts of others among given ones.

    Args:
        branches: all branches of a network, in its order.
        names: of some of them.
    """
    chosen = frozenset(names)
    found = with_parts(branches, chosen)
    return frozenset(item.name for item in branches if item.name in chosen and item.parent not in found)


@dataclass(frozen=True)
class Operand:
    """Where a program adds the value of a residual branch.

    Attributes:
        node: name of the operator that adds.
        argument: position of the value among its arguments.
        slot: index of the branch in the vectors that tell what has been removed.
        own: names of the operators that have no effect but on the value, or run in a module that is replaced.
    """

    node: str
    argument: int
    slot: int
    own: frozenset[str] = field(repr=False)


def find_branches(
    model: nn.Module, programs: Sequence[Program], calls: Mapping[str, Sequence[ModuleCall]]
) -> tuple[tuple[ResidualBranch, ...], tuple[tuple[Operand, ...], ...]]:
    """Find the residual branches of a network.

    A branch is a value that is added to a value of the same shape that it was computed from, through any
    operators. In ``x + (f(x) + g(x))``, f and g are two branches.

    Args:
        model: the network; not changed.
        programs: its captured forward passes, the evaluation-mode one first.
        calls: the calls of its modules in evaluation mode, by path.

    Returns:
        The branches in the order of the network, and for each program the places where they are added, with
        the numbers of the branches as slots.
    """
    flows = [Dataflow(program) for program in programs]
    found = [_parts(flow) for flow in flows]
    parts = found[0]
    found[1:] = [_matching(parts, flow, other) for flow, other in zip(flows[1:], found[1:], strict=True)]
    tensors = _Tensors(model, flows[0])
    nested = nested_layers(model, calls)
    branches = []
    for key, part in parts.items():
        settings = unfused(model, part.paths)
        branch = replace(_branch(part, flows[0], calls, tensors), settings=settings)
        if any(layer in nested for layer, _, _ in settings):
            branch = replace(branch, reason=branch.reason or KEEPS_FUSED)
        if any(key not in other for other in found[1:]):
            branch = replace(branch, reason=branch.reason or "in training mode, other modules compute it")
        branches.append(branch)
    operands = [
        tuple(_operand(flow, other[key], number) for number, key in enumerate(parts) if key in other)
        for flow, other in zip(flows, found, strict=True)
    ]
    return _named(branches, list(parts.values()), tensors), tuple(operands)


@dataclass(frozen=True)
class _Part:
    """A branch of one program, with the modules that compute nothing else.

    Attributes:
        addition: where it is added.
        whole: the smallest module that computes the sum and nothing else, if there is one.
        modules: the largest modules that compute nothing but the branch, in the order of the program.
    """

    addition: Addition
    whole: str | None
    modules: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the modules to replace."""
        if self.whole is None:
            return self.modules
        prefix = self.whole + "."
        outside = [path for path in self.modules if not path.startswith(prefix)]
        return (*outside, self.whole)


_Key = tuple[str, int]
"""The module that adds, and a number among the branches that it adds."""


def _parts(flow: Dataflow) -> dict[_Key, _Part]:
    """Find the branches of a program."""
    found: dict[_Key, _Part] = {}
    count: Counter[str] = Counter()
    for addition in flow.additions():
        holder = (module_paths(addition.node) or ("",))[-1]
        found[holder, count[holder]] = _Part(
            addition, _whole(flow, addition, holder), _modules(flow, addition)
        )
        count[holder] += 1
    return found


def _matching(parts: Mapping[_Key, _Part], flow: Dataflow, others: Mapping[_Key, _Part]) -> dict[_Key, _Part]:
    """Select the other program's branches whose modules compute nothing else there either."""
    matching = {}
    for key, part in parts.items():
        if key not in others:
            continue
        allowed = _allowed_in_whole(flow, others[key].addition)
        if all(flow.inside.get(path, frozenset()) <= allowed for path in part.paths):
            matching[key] = replace(others[key], whole=part.whole, modules=part.modules)
    return matching


def _operand(flow: Dataflow, part: _Part, slot: int) -> Operand:
    addition = part.addition
    inside = frozenset[Node]().union(*(flow.inside.get(path, frozenset()) for path in part.paths))
    own = flow.without_effect_but((addition.own | inside) - _sum_of(flow, addition))
    return Operand(addition.node.name, addition.argument, slot, frozenset(node.name for node in own))


def _modules(flow: Dataflow, addition: Addition) -> tuple[str, ...]:
    """Find the largest modules that compute nothing but a branch, in the order of the program."""
    allowed = flow.harmless_beside(addition.own)
    paths = dict.fromkeys(path for node in flow.nodes if node in addition.own for path in module_paths(node))
    only = [path for path in paths if path and flow.inside[path] <= allowed]
    return tuple(path for path in only if not any(path.startswith(other + ".") for other in only))


def _whole(flow: Dataflow, addition: Addition, holder: str) -> str | None:
    """Find the smallest module that computes the sum of a stream and a branch, and nothing else."""
    allowed = _allowed_in_whole(flow, addition)
    if not holder or not addition.is_plain or flow.drops_beside(holder, addition.own):
        return None
    return holder if flow.inside[holder] <= allowed else None


def _allowed_in_whole(flow: Dataflow, addition: Addition) -> Set[Node]:
    """Collect the operators of a branch and of the sum, and those that have no other effect."""
    return flow.harmless_beside(addition.own | _sum_of(flow, addition))


def _sum_of(flow: Dataflow, addition: Addition) -> frozenset[Node]:
    """Collect the operators that return the stream if the value of the branch is zero."""
    return flow.unchanged_after(addition) | {addition.node}


class _Tensors:
    """Which parameters and buffers modules hold, and which operators read them.

    Args:
        model: the network.
        flow: its evaluation-mode program.
    """

    def __init__(self, model: nn.Module, flow: Dataflow) -> None:
        self._sizes = {
            name: item.numel() for name, item in (*model.named_parameters(), *model.named_buffers())
        }
        self._first = canonical_names(model)
        self._readers: dict[str, set[Node]] = {}
        for node in flow.nodes:
            name = flow.program.tensor_names.get(node.name)
            if name is not None:
                self._readers.setdefault(name, set()).update(flow.readers(node))

    def size(self, path: str) -> int:
        """Count the numbers in the parameters and buffers of a module."""
        return sum(self._sizes[name] for name in self.held([path]))

    def held(self, paths: Sequence[str]) -> list[str]:
        """List the tensors that some modules hold, by their first names."""
        return list(dict.fromkeys(first for name, first in self._first.items() if _is_below(name, paths)))

    def shared(self, paths: Sequence[str], inside: Set[Node]) -> str | None:
        """Find a tensor of some modules that another module holds, or an operator outside them reads."""
        held = set(self.held(paths))
        for name, first in self._first.items():
            elsewhere = not _is_below(name, paths) or not self._readers.get(first, set()) <= inside
            if first in held and elsewhere:
                return first
        return None

    def read_only_by(self, nodes: Set[Node]) -> list[str]:
        """List the tensors that only some operators read."""
        return [name for name, readers in self._readers.items() if readers and readers <= nodes]


def _is_below(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(path + ".") for path in paths)


def _branch(
    part: _Part, flow: Dataflow, calls: Mapping[str, Sequence[ModuleCall]], tensors: _Tensors
) -> ResidualBranch:
    """Describe a branch, without its name."""
    addition, paths = part.addition, part.paths
    inside = frozenset[Node]().union(*(flow.inside[path] for path in paths))
    shared = tensors.shared(paths, inside)
    held = tensors.held(paths)
    idle = tuple(name for name in tensors.read_only_by(addition.own) if name not in held)
    reason = None
    if not paths:
        reason = "no module computes this branch and nothing else"
    elif shared is not None:
        reason = f"'{shared}' is used outside the branch too"
    elif any(name in flow.program.written for name in idle):
        reason = "it updates a buffer of a module that stays"
    replacements = []
    for path in paths:
        try:
            replacements.append(_replacement(path, part, flow, calls.get(path, ())))
        except _NoReplacementError as error:
            reason = reason or str(error)
    if reason is None and _joins_streams(part, flow, calls, replacements):
        reason = "what its modules return is concatenated, and no module does that and nothing else"
    return ResidualBranch(
        name="",
        replacements=tuple(replacements),
        nodes=tuple(node.name for node in flow.nodes if node in inside),
        remaining=tuple(node.name for node in flow.nodes if node in addition.own - inside),
        tensors=tuple(held),
        idle=idle,
        stream=addition.stream.name,
        value=addition.value.name,
        addition=addition.node.name,
        settings=(),
        reason=reason,
    )


def _joins_streams(
    part: _Part,
    flow: Dataflow,
    calls: Mapping[str, Sequence[ModuleCall]],
    replacements: Sequence[Replacement],
) -> bool:
    """Return whether what substitutes return is concatenated to another size than that of the stream.

    So it is in ``x + c(cat([a(x), b(x)]))``: with a and b passed over, c is given twice the stream.
    """
    sizes = {item.path: calls[item.path][0].arguments[item.argument] for item in replacements}
    holder = {node: path for path in sizes for node in flow.inside[path]}
    stream = shape_of(part.addition.stream)
    for node in part.addition.own - holder.keys():
        joined = shape_of(node)
        if not str(node.target).startswith("aten.cat.") or not stream or len(joined or ()) != len(stream):
            continue
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        sources = [_unchanged_source(item, holder, flow) for item in flow.inputs[node]]
        shapes = [sizes[holder[item]] if item in holder else () for item in sources]
        lengths = [shape[dim] if len(shape) == len(stream) else None for shape in shapes]
        if None not in lengths and sum(lengths) != stream[dim % len(stream)]:  # type: ignore[arg-type]
            return True
    return False


def _unchanged_source(node: Node, holder: Collection[Node], flow: Dataflow) -> Node:
    """Follow operators with one input back to a value of a module, such as an activation after it."""
    while node not in holder and len(flow.inputs[node]) == 1:
        (node,) = flow.inputs[node]
    return node


class _NoReplacementError(Exception):
    """Nothing can take the place of a module."""


def _replacement(path: str, part: _Part, flow: Dataflow, calls: Sequence[ModuleCall]) -> Replacement:
    """Choose what takes the place of a module.

    Raises:
        _NoReplacementError: nothing can; the message says why.
    """
    if not calls:
        raise _NoReplacementError(f"it is not known how '{path}' is called")
    if len({(call.entry, *call.arguments) for call in calls}) != 1:
        raise _NoReplacementError(f"'{path}' is called in several ways")
    call = calls[0]
    if call.result is None:
        raise _NoReplacementError(f"'{path}' returns neither a tensor nor a tuple that contains one")
    if not call.arguments:
        raise _NoReplacementError(f"'{path}' is called without a tensor")
    same = [key for key, shape in call.arguments.items() if shape == call.result]
    argument = (same or [*call.arguments])[0]
    inside, given = flow.inside[path], call.arguments[argument]
    on_stream = any(flow.depends(node, part.addition.stream) for node in inside)
    if path == part.whole or (on_stream and path not in _last(part, flow)):
        return Replacement(path, Substitute.PASS, argument, call.entry, copied=_is_written(flow, inside))
    if on_stream:
        return Replacement(path, Substitute.ZEROS, argument, call.entry)
    # What comes from elsewhere, such as the embedding of a time, is broadcast where it is read.
    if len(given) != len(call.result):
        raise _NoReplacementError(f"'{path}' returns another number of dimensions than it reads")
    new = {channels_of_layer(node, len(given)) for node in inside}
    single = tuple(dim for dim, size in enumerate(given) if size != call.result[dim] or dim in new)
    return Replacement(path, Substitute.ZEROS, argument, call.entry, single)


def _last(part: _Part, flow: Dataflow) -> set[str]:
    """Find the modules between which and the sum there is no other module of the branch."""
    holder = {node: path for path in part.paths for node in flow.inside[path]}
    last: set[str] = set()
    pending, seen = [part.addition.value], set[Node]()
    while pending:
        node = pending.pop()
        if node in holder:
            last.add(holder[node])
        elif node not in seen and node in part.addition.own:
            seen.add(node)
            pending.extend(flow.inputs[node])
    return last


def _is_written(flow: Dataflow, inside: Set[Node]) -> bool:
    """Return whether an operator outside a module writes to what the module returns."""
    return any(base in inside and node not in inside for node, base in flow.writes)


def _named(
    branches: Sequence[ResidualBranch], parts: Sequence[_Part], tensors: _Tensors
) -> tuple[ResidualBranch, ...]:
    """Name branches by the smallest module that computes them, and find out which are parts of others."""
    parents = [_parent(part, parts) for part in parts]
    common = [_common(part) for part in parts]
    taken: set[str] = set()
    names: list[str] = []
    for number, part in enumerate(parts):
        # A module that also computes other branches is too large to name this one.
        others = [path for other, path in enumerate(common) if other != number and parents[other] != number]
        path = common[number]
        if not path or any(_is_below(f"{other}.", [path]) for other in others):
            path = max(part.paths, key=tensors.size, default=path or part.addition.value.name)
        names.append(distinct_name(path, taken))
    return tuple(
        replace(branch, name=name, parent=None if parent is None else names[parent])
        for branch, name, parent in zip(branches, names, parents, strict=True)
    )


def _parent(part: _Part, parts: Sequence[_Part]) -> int | None:
    """Find the smallest branch that a branch is a part of."""
    around = [
        (len(other.addition.own), number)
        for number, other in enumerate(parts)
        if part.addition.node in other.addition.own
    ]
    return min(around)[1] if around else None


def _common(part: _Part) -> str:
    """Find the smallest module that runs all operators of the modules of a branch, by its path."""
    stacks = [paths for paths in map(module_paths, part.addition.own) if not {*part.paths}.isdisjoint(paths)]
    paths = [level[0] for level in zip(*stacks, strict=False) if len(set(level)) == 1]
    return paths[-1] if paths else ""
