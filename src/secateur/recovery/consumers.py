"""Find the convolutions and linear layers of a captured program that can be refitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from secateur.graph.capture.nodes import named_arguments, operator_name
from secateur.graph.capture.operators import PATCH_LAYERS
from secateur.graph.groups import IntArray
from secateur.graph.wiring import Wiring
from secateur.responses import Window


@dataclass(frozen=True, eq=False)
class Consumer:
    """A convolution or linear layer whose weight no other operator reads.

    Attributes:
        step: index of its step in the forward pass.
        node: the step.
        module: path of its module.
        window: its kernel, stride, padding, dilation and groups.
        source: the value that it reads.
        labels: labels of the channels that it reads.
        weight: name of its weight.
        bias: name of its bias, if no other operator reads it.
        mean: name of the running mean of the batch norm that follows, if it has no bias and only the batch
            norm reads its response.
        addition: the addition that follows, if only that (after the batch norm, if there is one) reads its
            response.
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
    addition: ShortcutAddition | None

    @property
    def dim(self) -> int:
        """Return the dimension of the input that contains the channels."""
        return 1 if self.window.kernel else -1

    def rows(self, examples: int, chunk_size: int) -> int:
        """Count the output positions.

        Args:
            examples: number of examples.
            chunk_size: number of examples that the program was captured for.
        """
        shape: tuple[int, ...] = tuple(self.source.meta["val"].shape)
        return examples * shape[0] // chunk_size * self.window.positions(shape)

    @property
    def constant(self) -> bool:
        """Return whether a constant can be added to its responses."""
        return self.bias is not None or self.mean is not None


@dataclass(frozen=True, eq=False)
class ShortcutAddition:
    """The addition of a consumer's response to another value, such as a shortcut.

    Attributes:
        shortcut: the value that the response is added to.
        norm: names of scale and running variance of the batch norm between consumer and addition, if any.
        epsilon: the number that the batch norm adds to the variance.
    """

    shortcut: Node
    norm: tuple[str | None, str] | None
    epsilon: float


def find_consumers(wiring: Wiring) -> list[Consumer]:
    """Find the consumers of a network, in the order of the forward pass.

    A weight that several steps share is left out: a fit for one of them would harm the others.
    Grouped convolutions that lose whole groups (depthwise ones) do not contract over cut channels, so they
    are not consumers.

    Args:
        wiring: the network's wiring, with the captured program.
    """
    reads = {read.node: read for read in wiring.reads}
    names = wiring.program.tensor_names
    nodes = [node for node in wiring.program.graph.nodes if node.op != "placeholder"]
    found = []
    for step, node in enumerate(nodes):
        read = reads.get(node.name)
        if read is None or read.argument != 0 or operator_name(node) not in PATCH_LAYERS:
            continue
        options = named_arguments(node)
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
        mean = _own(named_arguments(norm)["running_mean"], names) if norm is not None else None
        addition = _addition(node, names)
        found.append(
            Consumer(step, node, read.module, window, source, read.labels, weight, bias, mean, addition)
        )
    return found


def _window(kernel: tuple[int, ...], options: dict[str, Any]) -> Window:
    if not kernel:
        return Window()
    return Window.of_options(
        kernel, options["stride"], options["padding"], options["dilation"], options["groups"]
    )


def _own(node: Any, names: Mapping[str, str]) -> str | None:
    """Return the name of a parameter or buffer, if only one step reads it."""
    if not isinstance(node, Node) or node.op != "placeholder" or len(node.users) != 1:
        return None
    return names.get(node.name)


def _norm(node: Node, names: Mapping[str, str]) -> Node | None:
    """Find the batch norm with running statistics that reads a step's result, if nothing else reads it."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if operator_name(user) != "batch_norm" or user.args[0] is not node:
        return None
    options = named_arguments(user)
    return user if _own(options["running_mean"], names) and _own(options["running_var"], names) else None


def _addition(node: Node, names: Mapping[str, str]) -> ShortcutAddition | None:
    """Find the addition to a value of the same shape that reads the response, if nothing else reads it."""
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
        return ShortcutAddition(others[0], None, 0.0)
    options = named_arguments(norm)
    scale = _own(options["weight"], names)
    if options["weight"] is not None and scale is None:
        return None
    variance = _own(options["running_var"], names)
    return ShortcutAddition(others[0], (scale, str(variance)), float(options["eps"]))
