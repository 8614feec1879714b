"""Number the channels of all prunable groups in one flat vector, and find the module inputs that hold them.

Residual branches follow the channels, and are observed at module outputs.

Shapes: ``channels`` is the number of channels of all prunable groups together, ``positions``
the length of the dimension in which a module's input holds channels.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur.errors import UsageError
from secateur.graph.branches import Substitute
from secateur.graph.capture.nodes import module_paths
from secateur.ranks import Ranks

if TYPE_CHECKING:
    from torch.fx import Node

    from secateur.graph import ChannelGraph, Group
    from secateur.graph.branches import ResidualBranch


@dataclass(frozen=True, eq=False)
class ScoredInput:
    """A module whose input holds scored channels.

    Attributes:
        module: path of the module.
        dim: dimension of its first tensor input that holds the channels.
        index: place of each position's channel in the flat vector, int64, shape
            ``(positions,)``; ``layout.channels`` where the position is not scored.
    """

    module: str
    dim: int
    index: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class BranchOutput:
    """A module whose output is the value of a residual branch, or a term of it.

    Attributes:
        branch: name of the branch.
        module: path of the module.
        entry: place of the value in the tuple that the module returns; ``None`` if it returns a tensor.
        less: position or name of the argument that the module adds the value to, so that the value is its
            output less this argument; ``None`` if the output is the value.
        index: place of the branch in the flat vector of features, int64, shape ``(1,)``.
    """

    branch: str
    module: str
    entry: int | None
    less: int | str | None
    index: Tensor = field(repr=False)


@dataclass(frozen=True)
class BranchStream:
    """A module that reads the value to which a residual branch adds.

    Attributes:
        branch: name of the branch.
        module: path of the module.
        argument: position or name of the argument.
    """

    branch: str
    module: str
    argument: int | str


@dataclass(frozen=True)
class ChannelLayout:
    """The prunable groups side by side, and the module inputs that hold their channels.

    The flat vector of features has the channels first, then one place for all that is not scored, then the
    residual branches.

    Attributes:
        groups: the prunable groups, in the order of the network.
        channels: number of channels in all.
        inputs: the modules that read channels, each once, in the order of the network.
        hidden: for each group of which some consumer cannot be observed, the reason.
        branches: names of the prunable residual branches.
        outputs: the modules at which these are observed.
        streams: for branches whose value is added as it is observed, the module that reads the stream.
    """

    groups: tuple[Group, ...]
    channels: int
    inputs: tuple[ScoredInput, ...]
    hidden: Mapping[str, str]
    branches: tuple[str, ...] = ()
    outputs: tuple[BranchOutput, ...] = ()
    streams: tuple[BranchStream, ...] = ()

    @property
    def features(self) -> int:
        """Return the length of the flat vector of features."""
        return self.channels + 1 + len(self.branches)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Split a flat vector of shape ``(channels,)`` by group name."""
        parts = flat.split([group.channels for group in self.groups])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}

    def groups_of(self, inputs: Iterable[ScoredInput]) -> set[str]:
        """Name the groups that any of the inputs holds channels of."""
        mask = torch.zeros(self.channels + 1, dtype=torch.bool)
        for scored in inputs:
            mask[scored.index] = True
        return {name for name, part in self.split(mask[:-1]).items() if part.any()}

    def seen_by(self, ranks: Ranks, seen: Container[object]) -> list[ScoredInput]:
        """List the inputs that any of the processes has seen, in the order of the network."""
        mask = ranks.all_reduce_sum(
            torch.tensor([scored in seen for scored in self.inputs], dtype=torch.int64)
        )
        return [scored for scored, count in zip(self.inputs, mask.tolist(), strict=True) if count]

    def unscored(self, seen: Iterable[ScoredInput]) -> dict[str, str]:
        """Find the groups that cannot be scored when only some inputs were seen, with reasons.

        A group is left out rather than given a score that misses some of its consumers. A consumer
        that never ran (an auxiliary head in evaluation mode) is not missed.
        """
        reached = self.groups_of(seen)
        reasons = dict(self.hidden)
        for group in self.groups:
            if group.name not in reached:
                reasons.setdefault(group.name, "nothing that reads its channels ran in the observed passes")
        return reasons


def layout_of(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> ChannelLayout:
    """Lay out the prunable groups of a graph.

    A consumer is observed at the input of its module. Channels that are contracted in the middle of a forward
    pass cannot be observed.

    Args:
        graph: the channel graph.
        modules: the network's modules by path, shared ones under each of their paths.

    Returns:
        The layout; a module that several readers name is observed once.
    """
    groups = tuple(group for group in graph.groups if group.prunable)
    sizes = [group.channels if group.prunable else 0 for group in graph.groups]
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    channels = int(start[-1])
    width = np.array([*sizes, 0], dtype=np.int64)  # a position of no group (-1) is of the last, empty one
    observed: dict[int, ScoredInput] = {}
    hidden: list[ScoredInput] = []
    for reader in graph.readers:
        prunable = width[reader.group] > 0
        index = torch.from_numpy(np.where(prunable, start[reader.group] + reader.channel, channels))
        scored = ScoredInput(reader.module, reader.dim, index)
        module = modules[reader.module]
        known = observed.setdefault(id(module), scored) if reader.at_input else None
        if known is None or known.dim != scored.dim or not torch.equal(known.index, scored.index):
            hidden.append(scored)
    inputs = tuple(scored for scored in observed.values() if (scored.index < channels).any())
    branches = [branch for branch in graph.branches if branch.prunable]
    outputs = tuple(
        output
        for number, branch in enumerate(branches, channels + 1)
        for output in _outputs(graph, branch, torch.tensor([number]))
    )
    streams = tuple(found for branch in branches for found in _streams(graph, branch))
    names = tuple(branch.name for branch in branches)
    layout = ChannelLayout(groups, channels, inputs, {}, names, outputs, streams)
    return replace(layout, hidden=_reasons(layout, hidden))


def _streams(graph: ChannelGraph, branch: ResidualBranch) -> list[BranchStream]:
    """Find the module that reads the stream of a branch, if the branch's value is the output of a module."""
    whole = branch.replacements[-1]
    if whole.substitute is Substitute.PASS:
        return [BranchStream(branch.name, whole.path, whole.argument)]
    nodes = {node.name: node for node in graph.wiring.program.graph.nodes}
    readers = {
        path
        for node in nodes[branch.stream].users
        if node.name in branch.nodes
        for path in module_paths(node)
    }
    found = [item for item in branch.replacements if item.path in readers]
    if not found or branch.value in branch.remaining:
        return []
    return [BranchStream(branch.name, found[0].path, found[0].argument)]


def _outputs(graph: ChannelGraph, branch: ResidualBranch, index: Tensor) -> list[BranchOutput]:
    """Find the modules that return the value of a branch, which no other module of the branch reads."""
    whole = branch.replacements[-1]
    nodes = {node.name: node for node in graph.wiring.program.graph.nodes}
    if whole.substitute is Substitute.PASS:  # the module computes the sum
        if any(node.name in branch.nodes for node in nodes[branch.addition].users):
            # It rectifies the sum too, so the value is not what it adds to its argument.
            below = f"{whole.path}."
            ends = _last_modules(
                nodes[branch.value],
                lambda node: [path for path in module_paths(node) if path.startswith(below)][:1],
                lambda node: whole.path in module_paths(node),
            )
            return [BranchOutput(branch.name, path, None, None, index) for path in ends]
        entry = None if whole.entry is None else whole.entry[0]
        return [BranchOutput(branch.name, whole.path, entry, whole.argument, index)]
    own = set(branch.nodes)
    ends = _last_modules(
        nodes[branch.value],
        lambda node: module_paths(node) if node.name in own else (),
        lambda node: node.name in branch.remaining,
    )
    return [
        BranchOutput(branch.name, item.path, None if item.entry is None else item.entry[0], None, index)
        for item in branch.replacements
        if item.substitute is Substitute.ZEROS and item.path in ends
    ]


def _last_modules(
    value: Node, modules_of: Callable[[Node], Sequence[str]], between: Callable[[Node], bool]
) -> list[str]:
    """Find the modules from whose outputs a value is computed with operators ``between`` only."""
    found, pending, seen = dict[str, None](), [value], set[Node]()
    while pending:
        node = pending.pop()
        modules = modules_of(node)
        if modules:
            found |= dict.fromkeys(modules)
        elif node not in seen and between(node):
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return list(found)


def _reasons(layout: ChannelLayout, hidden: list[ScoredInput]) -> dict[str, str]:
    """Explain why groups cannot be observed: a consumer is inside a forward pass, or nothing reads them."""
    reasons: dict[str, str] = {}
    for scored in hidden:
        for name in layout.groups_of([scored]):
            where = f"module {scored.module!r}" if scored.module else "the network itself"
            reasons.setdefault(
                name, f"{where} reads its channels inside its forward pass, where they cannot be observed"
            )
    readable = layout.groups_of([*layout.inputs, *hidden])
    for group in layout.groups:
        if group.name not in readable:
            reasons[group.name] = "nothing in the network contracts over its channels"
    return reasons


def modules_of(model: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Unwrap the network that a graph describes, and list its modules by path.

    Distributed and precision wrappers keep the network in an attribute ``module``.

    Args:
        model: the network, or a wrapper around it.
        graph: the channel graph that was traced from the network.

    Returns:
        The network itself and its modules, shared ones under each of their paths.

    Raises:
        UsageError: the graph names modules that are not there.
    """
    wanted = [reader.module for reader in graph.readers]
    wanted += [member.module for group in graph.groups for member in group.members]
    inner: Any = model
    while True:
        modules = dict(inner.named_modules(remove_duplicate=False))
        missing = [path for path in wanted if path not in modules]
        if not missing:
            return inner, modules
        wrapped = getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            raise UsageError(
                f"the network has no module {missing[0]!r}, which the channel graph names; "
                "pass the network that was traced, or trace this one"
            )
        inner = wrapped
