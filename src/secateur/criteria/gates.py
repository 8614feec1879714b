"""Gates: the gradient of the loss with respect to a gate of ones on each channel, per example.

Think of a gate g of ones, one per example and channel, that multiplies what every reader reads
of the channel. Its gradient for an example is

    d loss / d g  =  sum over readers and positions of  activation * d loss / d activation,

which is minus the first-order change of the loss when the channel is masked. No multiplication
is done: each reader's input passes through an identity whose backward pass takes the sum and hands
the gradient on untouched, so parameter gradients stay the same to the bit.

Shapes: B examples, C channels of all prunable groups, P positions of a reader's input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, Observer, Subject
from secateur.criteria.hooks import as_rows, attach, by_example
from secateur.criteria.layout import Layout, Read
from secateur.errors import UsageError
from secateur.ranks import Ranks

# Numbers that are multiplied at once: they stay in the cache. A product of the whole tensor would
# be fresh memory at every step, and page faults take several times as long as the sums.
_BLOCK = 1 << 18


class Step:
    """The gate gradients that belong to one forward pass of the network.

    Attributes:
        batch: number of examples B.
        parts: for each read that a backward pass has reached, the sums of shape ``(B, P)``.
        complete: whether every activation was still there when a backward pass reached it.
    """

    __slots__ = ("batch", "complete", "parts")

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.parts: list[tuple[Read, Tensor]] = []
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


class Gates:
    """Gates on all readers of a network.

    A step's gradients are complete when the next forward pass begins (or someone asks): only then
    may absolute values be taken, since a channel's readers are added up first. Each forward pass
    is a step of its own, so accumulating gradients over several passes counts each; a forward
    pass without a backward pass leaves nothing.

    Some networks write into an activation after it was read. That shows in the backward pass: the step does
    not count, and from then on a copy of that activation is kept.

    Args:
        subject: the network and its layout.

    Attributes:
        lost: whether a step since the last look does not count, since an activation was overwritten.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._step: Step | None = None
        self._reached: dict[int, Step] = {}
        self._places: dict[tuple[int, torch.device], Tensor] = {}
        self._overwritten: set[Read] = set()
        self.lost = False
        # Every gate depends on it: so gradients flow to activations behind frozen parameters, and
        # a backward pass toward it alone visits all gates and computes no parameter gradient.
        self.anchor = torch.zeros((), requires_grad=True)

    def attach(self, on_forward: Callable[[], None]) -> list[RemovableHandle]:
        """Puts the gates in place.

        Args:
            on_forward: called when a forward pass begins, while finished steps can be taken.

        Returns:
            The handles of the hooks.
        """

        def begin(batch: int) -> None:
            on_forward()
            self._step = Step(batch)

        subject = self._subject
        return attach(subject.model, subject.modules, subject.layout, begin, self._read)

    def _read(self, read: Read, x: Tensor) -> Tensor | None:
        step = self._step
        if step is None or not torch.is_grad_enabled() or not x.is_floating_point():
            return None

        def record(activation: Tensor | None, gradient: Tensor) -> None:
            if activation is None:
                self._overwritten.add(read)
                self.lost, step.complete = True, False
                return
            step.parts.append((read, by_example(_products(activation, gradient, read.dim), step.batch, read)))
            self._reached[id(step)] = step

        gated = _Gate.apply(x, self.anchor, record, read in self._overwritten)  # type: ignore[no-untyped-call]
        return cast(Tensor, gated)

    def take(self) -> list[tuple[Tensor, set[Read]]]:
        """The steps that a backward pass has reached since the last call.

        Returns:
            For each step the gate gradients, float32, shape ``(B, C)``, and the reads they
            come from.
        """
        steps = list(self._reached.values())
        self._reached.clear()
        taken = []
        for step in steps:
            if step.complete:
                taken.append((self._gradient(step), {read for read, _ in step.parts}))
            step.parts = []
        return taken

    def _gradient(self, step: Step) -> Tensor:
        """The sum over all readers of a channel, shape ``(B, C)``."""
        device = step.parts[0][1].device
        index = torch.cat([self._place(read, device) for read, _ in step.parts])
        sums = torch.cat([part.to(device) for _, part in step.parts], dim=1)
        total = sums.new_zeros(step.batch, self._subject.layout.channels + 1)
        total.index_add_(1, index, sums)
        gate = total[:, :-1]
        return gate * step.batch if self._subject.reduction == "mean" else gate

    def _place(self, read: Read, device: torch.device) -> Tensor:
        key = (id(read), device)
        if key not in self._places:
            self._places[key] = read.index.to(device)
        return self._places[key]


def _products(activation: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """The sum over positions of activation times gradient, float32, shape ``(rows, P)``."""
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

    A subclass has a ``name`` and says what one example is worth in :meth:`per_example`.
    """

    needs = Needs.BACKWARD

    @abstractmethod
    def per_example(self, gate: Tensor) -> Tensor:
        """What each example says of each channel.

        Args:
            gate: gate gradients, float32, shape ``(B, C)``.

        Returns:
            Shape ``(B, C)``; it is added up over examples.
        """

    def finish(self, total: Tensor, examples: Tensor) -> Tensor:
        """The score from the sum over examples: their mean, unless a subclass says otherwise.

        Args:
            total: sum over examples, float64 where the device has it, shape ``(C,)``.
            examples: their number, a single number.

        Returns:
            Scores, shape ``(C,)``.
        """
        return total / examples

    def observe(self, subject: Subject) -> Observer:
        """An observer that adds up over examples."""
        return GateObserver(self, subject)


class GateObserver(Observer):
    """Adds up what a criterion makes of the gate gradients.

    Args:
        criterion: what is made of them.
        subject: the network and its layout.
    """

    def __init__(self, criterion: GateCriterion, subject: Subject) -> None:
        self._criterion = criterion
        self._layout: Layout = subject.layout
        self.gates = Gates(subject)
        self._total: Tensor | None = None
        self._examples = 0
        self._seen: set[Read] = set()

    def attach(self) -> list[RemovableHandle]:
        """Puts gates on all readers."""
        return self.gates.attach(on_forward=self._fold)

    @property
    def sources(self) -> list[Tensor]:
        """The tensor that every gate depends on."""
        return [self.gates.anchor]

    def needs_another_pass(self) -> bool:
        """Whether an activation of the last pass was overwritten before it could be read."""
        lost, self.gates.lost = self.gates.lost, False
        return lost

    def _fold(self) -> None:
        with torch.no_grad():
            for gate, reads in self.gates.take():
                self.add(gate, reads, len(gate))

    def add(self, gate: Tensor, reads: set[Read], examples: int) -> None:
        """Adds gate gradients of shape ``(B, C)`` that stand for a number of examples."""
        total = self._criterion.per_example(gate).sum(0, dtype=wide(gate))
        self._total = total if self._total is None else self._total + total.to(self._total.device)
        self._examples += examples
        self._seen |= reads

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Scores of all steps that had a backward pass."""
        self._fold()
        examples = ranks.sum(torch.tensor(self._examples, dtype=torch.float64))
        if not examples:
            raise UsageError(
                f"{self._criterion.name} has seen no backward pass; call the network and then "
                "loss.backward() while it is watched"
            )
        total = torch.zeros(self._layout.channels) if self._total is None else self._total
        scores = self._criterion.finish(ranks.sum(total.cpu().double()), examples)
        return scores, self._layout.unscored(self._layout.seen_by(ranks, self._seen))


def wide(tensor: Tensor) -> torch.dtype:
    """The type for long sums: float64 where the tensor's device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
