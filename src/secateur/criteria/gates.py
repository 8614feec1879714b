"""Compute the gradient of the loss with respect to a gate of ones on each channel, per example.

A gate g of ones, one per example and channel, would multiply what every consumer reads of the channel.
Its gradient for an example is

    d loss / d g  =  sum over consumers and positions of  activation * d loss / d activation,

which is minus the first-order change of the loss when the channel is masked. Nothing is
multiplied: each consumer's input passes through an identity whose backward pass computes the sum and
returns the gradient unchanged, so parameter gradients stay the same to the bit.

A residual branch is one more feature (arXiv 1611.06440, eq. 8): its gate multiplies its value where it is
added, and its gradient is the sum over the whole value. It is observed at a copy of the module's output,
since the network may add in place.

Shapes: B examples, C channels of all prunable groups, P positions of a consumer's input, F features
(channels, one place for what is not scored, residual branches).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer
from secateur.criteria.hooks import as_rows, attach, attach_outputs, by_example
from secateur.criteria.layout import BranchOutput, ChannelLayout, ScoredInput
from secateur.errors import UsageError
from secateur.ranks import Ranks

# Numbers that are multiplied at once: they stay in the cache. A product of the whole tensor would
# allocate memory at every step, and page faults take several times as long as the sums.
_BLOCK = 1 << 18


Observed = ScoredInput | BranchOutput
"""A place with a gate."""


class PassGradients:
    """The gate gradients that belong to one forward pass of the network.

    Attributes:
        batch: number of examples B.
        parts: for each input that a backward pass has reached, the sums of shape ``(B, P)``; for each output
            of a residual branch, those of shape ``(B, 1)``.
        complete: whether every activation was still there when a backward pass reached it.
    """

    __slots__ = ("batch", "complete", "parts")

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.parts: list[tuple[Observed, Tensor]] = []
        self.complete = True


class _Gate(torch.autograd.Function):
    """The identity; its backward pass sums activation times gradient over the positions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,  # noqa: ARG004
        record: Callable[[Tensor | None, Tensor], None],
        overwritten: bool,
    ) -> Tensor:
        ctx.save_for_backward(x.clone() if overwritten else x)
        ctx.record = record
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        try:
            (x,) = ctx.saved_tensors
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            x = None
        with torch.no_grad():
            ctx.record(x, grads[0])
        return grads[0] if ctx.needs_input_grad[0] else None, None, None, None


class _OutputGate(torch.autograd.Function):
    """A copy of a module's output; its backward pass sums value times gradient over each row."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,  # noqa: ARG004
        value: Tensor,
        record: Callable[[Tensor, Tensor], None],
    ) -> Tensor:
        ctx.save_for_backward(value)
        ctx.record = record
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        with torch.no_grad():
            ctx.record(ctx.saved_tensors[0], grads[0])
        return grads[0] if ctx.needs_input_grad[0] else None, None, None, None


class Gates:
    """Gates on the inputs of all consumers of a network.

    The gradients of a pass are complete when the next forward pass begins, or when they are taken. Only then
    may a criterion take absolute values, since the consumers of a channel are summed first. Where gradients
    are accumulated over several passes, each pass counts; a forward pass without a backward pass does not.

    Some networks write into an activation after it was read. That shows in the backward pass: the step does
    not count, and from then on a copy of that activation is kept.

    Args:
        network: the network and its layout.

    Attributes:
        lost: whether a pass since the last look does not count, since an activation was overwritten.
    """

    def __init__(self, network: ObservedNetwork) -> None:
        self._network = network
        self._pass: PassGradients | None = None
        self._reached: dict[int, PassGradients] = {}
        self._places: dict[tuple[int, torch.device], Tensor] = {}
        self._overwritten: set[ScoredInput] = set()
        self.lost = False
        # Every gate depends on it: so gradients flow to activations after frozen parameters, and
        # a backward pass to it visits all gates and computes no parameter gradient.
        self.anchor = torch.zeros((), requires_grad=True)

    def attach(self, on_forward: Callable[[], None]) -> list[RemovableHandle]:
        """Hook the network.

        Args:
            on_forward: called when a forward pass begins, when gradients of finished passes can be taken.

        Returns:
            The handles of the hooks.
        """

        def begin(batch: int) -> None:
            on_forward()
            self._pass = PassGradients(batch)

        network = self._network
        handles = attach(network.model, network.modules, network.layout, begin, self._input)
        return handles + attach_outputs(network.modules, network.layout, self._output)

    def _output(self, place: BranchOutput, output: Tensor, value: Tensor) -> Tensor | None:
        current = self._pass
        if current is None or not torch.is_grad_enabled() or not output.is_floating_point():
            return None

        def record(value: Tensor, gradient: Tensor) -> None:
            sums = _products(value.flatten(1), gradient.flatten(1), 1).sum(1, keepdim=True)
            current.parts.append((place, by_example(sums, current.batch, place)))
            self._reached[id(current)] = current

        gated = _OutputGate.apply(output, self.anchor, value.detach(), record)  # type: ignore[no-untyped-call]
        return cast(Tensor, gated)

    def _input(self, scored: ScoredInput, x: Tensor) -> Tensor | None:
        current = self._pass
        if current is None or not torch.is_grad_enabled() or not x.is_floating_point():
            return None

        def record(activation: Tensor | None, gradient: Tensor) -> None:
            if activation is None:
                self._overwritten.add(scored)
                self.lost, current.complete = True, False
                return
            current.parts.append(
                (scored, by_example(_products(activation, gradient, scored.dim), current.batch, scored))
            )
            self._reached[id(current)] = current

        gated = _Gate.apply(x, self.anchor, record, scored in self._overwritten)  # type: ignore[no-untyped-call]
        return cast(Tensor, gated)

    def take(self) -> list[tuple[Tensor, set[Observed]]]:
        """Take the gradients of all passes that a backward pass has reached since the last call.

        Returns:
            For each forward pass the gate gradients, float32, shape ``(B, F)``, and the places they
            come from.
        """
        passes = list(self._reached.values())
        self._reached.clear()
        taken = []
        for current in passes:
            if current.complete:
                taken.append((self._gradient(current), {scored for scored, _ in current.parts}))
            current.parts = []
        return taken

    def _gradient(self, current: PassGradients) -> Tensor:
        """Sum over all consumers of a channel, and over the terms of a branch, shape ``(B, F)``."""
        device = current.parts[0][1].device
        index = torch.cat([self._place(scored, device) for scored, _ in current.parts])
        sums = torch.cat([part.to(device) for _, part in current.parts], dim=1)
        gate = sums.new_zeros(current.batch, self._network.layout.features)
        gate.index_add_(1, index, sums)
        return gate * current.batch if self._network.reduction == "mean" else gate

    def _place(self, scored: Observed, device: torch.device) -> Tensor:
        key = (id(scored), device)
        if key not in self._places:
            self._places[key] = scored.index.to(device)
        return self._places[key]


def _products(activation: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Sum activation times gradient over positions, float32, shape ``(rows, P)``."""
    if activation.dtype is torch.float16:  # products of loss-scaled gradients leave its range
        activation = activation.float()
    rows = max(1, _BLOCK * len(activation) // max(1, activation.numel()))
    parts = [
        _summed(some * other, dim)
        for some, other in zip(activation.split(rows), gradient.split(rows), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed(product: Tensor, dim: int) -> Tensor:
    if product.ndim == 2:
        return product.float()
    return as_rows(product, dim).sum(2, dtype=torch.float32)


class GateCriterion(Criterion):
    """A criterion on the gate gradient of each example.

    A subclass has a ``name`` and defines what is summed over examples in :meth:`per_example`.
    """

    needs = Needs.BACKWARD
    scores_branches = True

    @abstractmethod
    def per_example(self, gate: Tensor) -> Tensor:
        """Compute each example's part of the score of each channel.

        Args:
            gate: gate gradients, float32, shape ``(B, F)``.

        Returns:
            Shape ``(B, F)``; it is summed over examples.
        """

    def finish(self, total: Tensor, examples: Tensor) -> Tensor:
        """Compute the score from the sum over examples: their mean, unless a subclass overrides it.

        Args:
            total: sum over examples, float64 where the device has it, shape ``(F,)``.
            examples: their number, a single number.

        Returns:
            Scores, shape ``(F,)``.
        """
        return total / examples

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that sums over examples."""
        return GateObserver(self, network)


class GateObserver(Observer):
    """Sum a criterion's function of the gate gradients over examples.

    Args:
        criterion: the criterion.
        network: the network and its layout.
    """

    def __init__(self, criterion: GateCriterion, network: ObservedNetwork) -> None:
        self._criterion = criterion
        self._layout: ChannelLayout = network.layout
        self.gates = Gates(network)
        self._total: Tensor | None = None
        self._examples = 0
        self._seen: set[Observed] = set()

    def attach(self) -> list[RemovableHandle]:
        """Put gates on the inputs of all consumers, and on the values of residual branches."""
        return self.gates.attach(on_forward=self._fold)

    @property
    def sources(self) -> list[Tensor]:
        """Return the tensor that every gate depends on."""
        return [self.gates.anchor]

    def needs_another_pass(self) -> bool:
        """Return whether an activation of the last pass was overwritten before it could be read."""
        lost, self.gates.lost = self.gates.lost, False
        return lost

    def _fold(self) -> None:
        with torch.no_grad():
            for gate, places in self.gates.take():
                self.add(gate, places, len(gate))

    def add(self, gate: Tensor, places: set[Observed], examples: int) -> None:
        """Add gate gradients of shape ``(B, F)`` that belong to a number of examples."""
        total = self._criterion.per_example(gate).sum(0, dtype=wide(gate))
        self._total = total if self._total is None else self._total + total.to(self._total.device)
        self._examples += examples
        self._seen |= places

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the scores from all passes that had a backward pass."""
        self._fold()
        examples = ranks.all_reduce_sum(torch.tensor(self._examples, dtype=torch.float64))
        if not examples:
            raise UsageError(
                f"{self._criterion.name} has seen no backward pass; call the network and then "
                "loss.backward() while scores are collected"
            )
        layout = self._layout
        total = torch.zeros(layout.features) if self._total is None else self._total
        features = self._criterion.finish(ranks.all_reduce_sum(total.cpu().double()), examples)
        seen = ranks.all_reduce_sum(
            torch.tensor([place in self._seen for place in layout.outputs], dtype=torch.int64)
        )
        branches = features[layout.channels + 1 :].clone()
        for place, count in zip(layout.outputs, seen.tolist(), strict=True):
            if not count:
                branches[place.index - layout.channels - 1] = torch.nan
        scores = torch.cat([features[: layout.channels], branches])
        return scores, layout.unscored(layout.seen_by(ranks, self._seen))


def wide(tensor: Tensor) -> torch.dtype:
    """Choose the type for long sums: float64 where the tensor's device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
