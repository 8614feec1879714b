"""Rescale the weights for a trial cut, so that errors become visible in the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.operators import channels_of_layer
from secateur.graph.capture.program import ExampleInputs
from secateur.graph.checking.compare import Outputs
from secateur.graph.checking.execution import reference_mode
from secateur.graph.checking.masked import MaskedInterpreter, flat_arguments
from secateur.graph.labels import BoolArray
from secateur.graph.wiring import Pass

_CALM = (0.2, 5.0)
"""Standard deviations of a layer's outputs that are left as they are."""

_SWAMPED = 1e-5
"""Standard deviation, as a share of the largest value, below which a bias hides what the inputs say."""

_OPEN = 1.5
"""Mean of a layer's outputs, in standard deviations: a rectifier behind it is open for most of them."""


def scrambled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace tensors that hold one value throughout by random ones.

    Args:
        tensors: parameters and buffers by name; not changed.

    Returns:
        The same names, with new tensors where the old ones were constant.
    """
    return {name: tensor.detach() for name, tensor in tensors.items()} | random_for_constant(tensors)


def random_for_constant(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draw random values for the tensors that hold one value throughout.

    Fresh scales of one, shifts of zero, layer scales of a millionth, and a single factor of zero before a
    branch would all hide errors.

    Args:
        tensors: parameters and buffers by name; not changed.

    Returns:
        New tensors for those that are constant.
    """
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, tensor in tensors.items():
        data = tensor.detach()
        dense = data.layout is torch.strided
        if dense and data.is_floating_point() and _hides(tensor):
            level = float(data.flatten()[0])
            noise = torch.rand(data.shape, generator=generator) + 0.5
            drawn = noise * (math.copysign(max(abs(level), 0.1), level)) if level else (noise - 1.0) * 0.2
            result[name] = drawn.to(data)
    return result


def _hides(tensor: Tensor) -> bool:
    """Return whether a tensor is constant; a single number counts if it is a parameter that is zero."""
    if tensor.numel() <= 1:
        return isinstance(tensor, nn.Parameter) and tensor.numel() == 1 and float(tensor.detach()) == 0
    flat = tensor.detach().reshape(-1)
    return bool((flat[:64] == flat[0]).all()) and bool((flat == flat[0]).all())


@dataclass(frozen=True)
class Weights:
    """Weights for a trial cut.

    Attributes:
        tensors: parameters and buffers by name.
        outputs: of the masked original with them, in the dtype of the weights, if they are known already.
    """

    tensors: Mapping[str, Tensor]
    outputs: Outputs | None = None


def lively(
    forward: Pass, tensors: Mapping[str, Tensor], inputs: ExampleInputs, removed: BoolArray
) -> Weights:
    """Rescale layers so that outputs depend on inputs and errors become visible.

    In a deep network that was never trained, or is badly scaled, the outputs hardly depend on the inputs, and
    an error in an early layer changes nothing. So statistics of batch normalisation become those of these
    inputs, and layers whose outputs are tiny or huge are scaled to a standard deviation of one, one by
    one (as in Mishkin and Matas 2015, arXiv 1511.06422). Biases are moved so that rectifiers open: where one
    channel is left of each layer, a single closed one would hide everything before it. The structure of the
    network is not touched.

    Args:
        forward: the evaluation-mode pass.
        tensors: parameters and buffers by name; not changed.
        inputs: what to run it with.
        removed: per slot, whether its channel is masked.

    Returns:
        The weights, and what the masked original returns with them for these inputs.
    """
    changed = dict(tensors)
    with reference_mode(forward, native=True), torch.no_grad():
        runner = _Scaling(forward, removed, changed)
        values = flat_arguments(forward.program, tensors, inputs, {})
        leaves = runner.run(*values, enable_io_processing=False)
        outputs = replace(Outputs.of(tuple(leaves), rounded=True), paths=forward.program.outputs)
    return Weights(changed, outputs if runner.is_exact else None)


class _Scaling(MaskedInterpreter):
    """Run a program and scale each layer before its result is used."""

    def __init__(self, forward: Pass, removed: BoolArray, tensors: dict[str, Tensor]) -> None:
        super().__init__(forward, removed)
        self._tensors = tensors
        names = forward.program.tensor_names
        self._names = {node: names[node.name] for node in forward.program.graph.nodes if node.name in names}
        self._done: set[str] = set()

    @property
    def is_exact(self) -> bool:
        """Return whether no operator read a weight before it was scaled."""
        return all(len(node.users) == 1 for node, name in self._names.items() if name in self._done)

    def run_node(self, n: Node) -> Any:
        """Run one operator, and scale its result as its weights are scaled."""
        if operator_name(n) == "batch_norm":
            self._normalise(n)
        result = super().run_node(n)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        dim = channels_of_layer(n, result.dim())
        return result if dim is None else self._scaled(n, result, dim)

    def _scaled(self, node: Node, result: Tensor, dim: int) -> Tensor:
        """Scale weight and bias of a layer and move the bias, each tensor once."""
        held = [item for item in node.args[1:3] if isinstance(item, Node)]
        names = [self._names.get(item, "") for item in held]
        if not all(names) or self._done & set(names):
            return result
        if len(held) > 1 and _spread(_sampled(result, dim)) <= _SWAMPED * float(result.abs().max()):
            self._done.add(names[1])
            self._put(held[1], names[1], torch.zeros_like(self._tensors[names[1]]))
            result = super().run_node(node)
        seen = _sampled(result, dim)
        spread = _spread(seen)
        if not 0 < spread < math.inf:
            return result
        self._done.update(names)
        scale = 1.0 if _CALM[0] <= spread <= _CALM[1] else 1 / spread
        if scale != 1.0:
            self._put(held[0], names[0], self._tensors[names[0]] * scale)
            result = result * scale
        if len(held) > 1:
            mean = seen.mean([other for other in range(result.dim()) if other != dim])
            # What a channel has by itself stays in part, so that no two channels become alike.
            shift = (_OPEN * spread - 0.9 * mean) * scale
            self._put(held[1], names[1], self._tensors[names[1]] * scale + shift)
            shape = [1] * result.dim()
            shape[dim] = -1
            result = result + shift.view(shape)
        return result

    def _normalise(self, node: Node) -> None:
        """Give a batch normalisation the statistics of what it reads."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        value = args[0]
        if not isinstance(value, Tensor):  # what only a removed branch computes
            return
        rest = [dim for dim in range(value.dim()) if dim != 1]
        if value.dim() < 2 or value.numel() == value.shape[1]:
            return
        variance, mean = torch.var_mean(_sampled(value, 1), rest)
        for place, found in ((3, mean), (4, variance + 1e-3)):
            item = node.args[place]
            if isinstance(item, Node) and item in self._names and torch.isfinite(found).all():
                name = self._names[item]
                if name not in self._done:
                    self._done.add(name)
                    self._put(item, name, found)

    def _put(self, node: Node, name: str, value: Tensor) -> None:
        value = value.to(self._tensors[name].dtype)
        self._tensors[name] = value
        self.env[node] = value


def _spread(value: Tensor) -> float:
    return float(value.std()) if value.numel() > 1 else 0.0


def _sampled(value: Tensor, channels: int) -> Tensor:
    """Take every second, third ... position of large images, so that 16 to 31 in each dimension stay."""
    if value.dim() < 4:
        return value
    strides = [1 if dim in (0, channels) else max(1, size // 16) for dim, size in enumerate(value.shape)]
    return value[tuple(slice(None, None, stride) for stride in strides)]
