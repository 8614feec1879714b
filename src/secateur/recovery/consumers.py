"""Consumers: the steps of a script that contract channels with a weight that can be refitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.recovery.script import Portion, Script, tensors_of
from secateur.responses import Window

OPERATORS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear")
"""Names of the operators that contract channels with a weight, without their overloads."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A convolution or linear layer whose weight belongs to it alone.

    Attributes:
        step: index of its step in the script.
        node: the step.
        module: path of its module.
        window: how it looks at its input.
        source: the value that it reads.
        labels: labels of the channels that it reads.
        weight: name of its weight.
        bias: name of its bias, if it has one of its own.
        mean: name of the running mean of the batch norm that alone reads it, if it has no bias.
        meeting: where its response, batch-normalised or not, is added to another value.
    """

    step: int
    node: Node
    module: str
    window: Window
    source: Node
    labels: IntArray
    weight: str
    bias: str | None
    mean: str | None
    meeting: Meeting | None

    @property
    def dim(self) -> int:
        """The dimension of the input that holds the channels."""
        return 1 if self.window.kernel else -1

    def rows(self, script: Script, portions: Sequence[Portion]) -> int:
        """Number of output positions that the examples of some portions of a script give."""
        shape: tuple[int, ...] = tuple(self.source.meta["val"].shape)
        return (
            sum(portion.count for portion in portions)
            * shape[0]
            // script.size
            * self.window.positions(shape)
        )

    @property
    def constant(self) -> bool:
        """Whether a constant can be added to its responses."""
        return self.bias is not None or self.mean is not None


@dataclass(frozen=True, eq=False)
class Meeting:
    """The addition behind a consumer: what it adds to.

    Attributes:
        other: the value that the response is added to.
        norm: names of the batch norm's scale and running variance in between, if there is one.
        epsilon: what the batch norm adds to the variance.
    """

    other: Node
    norm: tuple[str | None, str] | None
    epsilon: float


def find_consumers(script: Script) -> list[Consumer]:
    """The consumers of a script, in the order of their steps.

    A weight that several steps share is left out: a fit for one of them would harm the others.
    Grouped convolutions that lose whole groups (depthwise ones) hand a channel on and contract
    over nothing that is cut, so they are no consumers.
    """
    reads = {read.node: read for read in script.wiring.reads}
    names = tensors_of(script.program)
    found = []
    for step, node in enumerate(script.nodes):
        read = reads.get(node.name)
        if read is None or read.argument != 0 or not str(node.target).startswith(OPERATORS):
            continue
        options = arguments(node)
        weight = _own(options["weight"], names)
        source = options["input"]
        kernel = tuple(options["weight"].meta["val"].shape[2:])
        if weight is None or source.meta["val"].dim() != (
            len(kernel) + 2 if kernel else max(2, source.meta["val"].dim())
        ):
            continue
        window = _window(kernel, options)
        bias = _own(options["bias"], names)
        norm = _norm(node, names) if options["bias"] is None else None
        mean = _own(arguments(norm)["running_mean"], names) if norm is not None else None
        meeting = _meeting(node, names)
        found.append(
            Consumer(step, node, read.module, window, source, read.labels, weight, bias, mean, meeting)
        )
    return found


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a step by name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((item.name for item in schema), node.args, strict=False))
    return {**{item.name: item.default_value for item in schema}, **given, **node.kwargs}


def _window(kernel: tuple[int, ...], options: dict[str, Any]) -> Window:
    if not kernel:
        return Window()
    return Window.of_options(
        kernel, options["stride"], options["padding"], options["dilation"], options["groups"]
    )


def _own(node: Any, names: dict[str, str]) -> str | None:
    """The name of a parameter or buffer that one step alone reads."""
    if not isinstance(node, Node) or node.op != "placeholder" or len(node.users) != 1:
        return None
    return names.get(node.name)


def _norm(node: Node, names: dict[str, str]) -> Node | None:
    """The batch norm with running statistics that alone reads a step's result."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if not str(user.target).startswith("aten.batch_norm") or user.args[0] is not node:
        return None
    options = arguments(user)
    return user if _own(options["running_mean"], names) and _own(options["running_var"], names) else None


def _meeting(node: Node, names: dict[str, str]) -> Meeting | None:
    """The addition to another value of the same shape that alone reads the response."""
    norm = _norm(node, names)
    end = norm or node
    if len(end.users) != 1:
        return None
    user = next(iter(end.users))
    if str(user.target) not in {"aten.add.Tensor", "aten.add_.Tensor"} or user.kwargs.get("alpha", 1) != 1:
        return None
    others = [item for item in user.args if isinstance(item, Node) and item is not end]
    if len(others) != 1 or others[0].meta["val"].shape != end.meta["val"].shape:
        return None
    if norm is None:
        return Meeting(others[0], None, 0.0)
    options = arguments(norm)
    scale = _own(options["weight"], names)
    if options["weight"] is not None and scale is None:
        return None
    variance = _own(options["running_var"], names)
    return Meeting(others[0], (scale, str(variance)), float(options["eps"]))
