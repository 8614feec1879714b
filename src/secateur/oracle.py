"""The oracle: what the removal of each channel really does to the loss (arXiv 1611.06440, section 2.2).

It is what every criterion tries to guess, and far too slow to prune by: one forward pass for each channel.
Here the pass begins at the first step that feels the removal, with the values that the whole network has
there, so a channel near the output costs next to nothing, and a channel that is zero for all examples
costs nothing; where there are few examples, several channels share a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.criteria import Scores
from secateur.devices import device_of
from secateur.errors import TraceError, UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.cutting import named_tensors
from secateur.graph.masked import Removed
from secateur.precision import full_precision
from secateur.ranks import Ranks
from secateur.recovery.layout import laid_out
from secateur.recovery.run import Run
from secateur.recovery.script import Script, write_script
from secateur.recovery.trial import cut_alone, first_step, is_silent
from secateur.untouched import untouched

_UNREAD = "nothing in the forward pass reads its channels"
_SINGLE = "has a single channel"
_BUSY_CPU, _BUSY_GPU = 64, 2048  # examples in a pass, copies counted

Told = Callable[["Oracle", int], None]
"""Told whenever more channels are known: what is known so far, and how many channels there will be."""


class Oracle(Mapping[str, Tensor]):
    """The change of the loss for every channel, each masked alone; an immutable mapping by group.

    ``oracle[group.name]`` has shape ``(channels,)``, float64: loss without the channel minus loss with all;
    NaN for channels that are not measured yet.

    Attributes:
        loss: of the whole network.
        examples: how many the losses are means over.
        unmeasured: for each prunable group without changes, the reason.

    >>> oracle = Oracle({"conv": torch.tensor([0.5, -0.1])}, loss=1.0, examples=8)
    >>> Oracle.from_dict(oracle.to_dict()) == oracle, oracle.magnitude()["conv"]
    (True, tensor([0.5000, 0.1000]))
    """

    def __init__(
        self,
        changes: Mapping[str, Tensor],
        loss: float,
        examples: int,
        unmeasured: Mapping[str, str] | None = None,
    ) -> None:
        self._changes = {name: tensor.detach().double().clone() for name, tensor in changes.items()}
        self.loss = loss
        self.examples = examples
        self.unmeasured: Mapping[str, str] = MappingProxyType(dict(unmeasured or {}))

    def __getitem__(self, name: str) -> Tensor:
        return self._changes[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Oracle) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def measured(self) -> int:
        """Number of channels whose change is known."""
        return sum(int((~values.isnan()).sum()) for values in self._changes.values())

    def magnitude(self) -> Scores:
        """The absolute changes, as scores to make a plan with (the paper's ``oracle-abs``)."""
        return Scores(
            "oracle", {name: tensor.abs() for name, tensor in self._changes.items()}, self.unmeasured
        )

    def signed(self) -> Scores:
        """The changes as they are: a channel whose removal helps goes first (the paper's ``oracle-loss``)."""
        return Scores("oracle-loss", self._changes, self.unmeasured)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists only; ``None`` for what is not measured yet."""
        return {
            "loss": self.loss,
            "examples": self.examples,
            "changes": {
                name: [None if math.isnan(value) else value for value in tensor.tolist()]
                for name, tensor in self._changes.items()
            },
            "unmeasured": dict(self.unmeasured),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Oracle:
        """The inverse of :meth:`to_dict`."""
        changes = {}
        for name, values in data["changes"].items():
            numbers = [math.nan if value is None else value for value in values]
            changes[name] = torch.tensor(numbers, dtype=torch.float64)
        return cls(changes, float(data["loss"]), int(data["examples"]), data["unmeasured"])


@untouched()
@full_precision()
def oracle(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    max_examples: int | None = None,
    at_once: int | None = None,
    resume: Oracle | None = None,
    progress: Told | None = None,
    across_ranks: bool = False,
) -> Oracle:
    """Measures what the removal of each single channel does to the loss (arXiv 1611.06440, section 2.2).

    Args:
        model: the network that was traced; left as it is.
        graph: its channel graph.
        batches: pairs of inputs and targets; the same ones are used for every channel.
        loss_fn: mean loss of a batch of outputs against targets.
        max_examples: how many examples to use; all by default.
        at_once: how many channels share a pass; by default as many as keep the device busy. Memory grows
            with it. Where a network mixes its examples, channels get passes of their own.
        resume: what was measured before on the same examples; only what is missing is measured.
        progress: told whenever more channels are known.
        across_ranks: whether the processes of a distributed run share the work: all call this with the
            same arguments, each masks some channels, and all get all changes.

    Returns:
        The changes of all prunable groups.

    Raises:
        UsageError: a batch has no targets, or ``resume`` belongs to other examples or another network.

    Example:
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> found = oracle(net, trace(net, x), [(x, y)], nn.functional.mse_loss)
        >>> found["0"].shape, found.examples
        (torch.Size([3]), 8)
    """
    inputs, targets = _pairs(batches, max_examples)
    copies = at_once if at_once is not None else _at_once(model, len(targets))
    if copies < 1:
        raise UsageError(f"at_once is a number of channels of at least 1, not {copies}")
    script = _script(model, graph, inputs, max_examples, copies)
    bench = _Bench(graph, script, named_tensors(model), targets, loss_fn, Ranks(across_ranks))
    return bench.measure(resume, progress)


def _at_once(model: nn.Module, examples: int) -> int:
    """Channels that share a pass, so that there is enough to do at once."""
    busy = _BUSY_CPU if device_of(model).type == "cpu" else _BUSY_GPU
    return max(1, busy // examples)


def _script(
    model: nn.Module, graph: ChannelGraph, inputs: list[Any], most: int | None, copies: int
) -> Script:
    """The forward pass for so many copies, or for one where it cannot be captured for more."""
    try:
        return write_script(model, graph, inputs, most, copies)
    except (UsageError, TraceError):
        if copies == 1:
            raise
    return write_script(model, graph, inputs, most)


def _pairs(batches: Iterable[Any], most: int | None) -> tuple[list[Any], Tensor]:
    inputs, targets, count = [], [], 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise UsageError("the oracle needs batches that are pairs of inputs and targets")
        inputs.append(batch)
        targets.append(batch[1])
        count += len(batch[1])
        if most is not None and count >= most:
            break
    if not targets:
        raise UsageError("there are no examples; pass batches with at least one")
    return inputs, torch.cat(targets)[:most]


class _Bench:
    """The whole network on its way through the examples, forked wherever a channel is first felt."""

    def __init__(
        self,
        graph: ChannelGraph,
        script: Script,
        tensors: Mapping[str, Tensor],
        targets: Tensor,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        ranks: Ranks,
    ) -> None:
        self._graph = graph
        as_they_are = {name: tensor.detach() for name, tensor in tensors.items()}
        self._script, self._tensors = laid_out(script, graph.removed, as_they_are)
        self._whole = Run(self._script, graph.removed, self._tensors)
        self._targets = targets
        self._loss_fn = loss_fn
        self._ranks = ranks

    def measure(self, resume: Oracle | None, progress: Told | None) -> Oracle:
        """All channels of all groups, those that are felt first first."""
        start: dict[str, int] = {}
        unmeasured: dict[str, str] = {}
        for group in self._graph.prunable:
            step = None if group.channels == 1 else first_step(self._script, self._without(group, 0))
            if step is None:
                unmeasured[group.name] = _SINGLE if group.channels == 1 else _UNREAD
            else:
                start[group.name] = step
        outputs = Run(self._script, self._graph.removed, self._tensors).outputs()
        loss = self._losses_of(outputs[:1] if self._script.copies > 1 else outputs[None])[0]
        changes = self._known(start, resume, loss)
        total = sum(len(values) for values in changes.values())
        for name in sorted(start, key=start.__getitem__):
            self._whole.advance(start[name])
            for channels, losses in self._losses(self._graph[name], changes[name].isnan(), loss):
                changes[name][channels] = torch.tensor(losses, dtype=torch.float64) - loss
                if progress is not None:
                    progress(Oracle(changes, loss, self._script.examples, unmeasured), total)
        return Oracle(changes, loss, self._script.examples, unmeasured)

    def _known(self, start: Mapping[str, int], resume: Oracle | None, loss: float) -> dict[str, Tensor]:
        """Changes that were measured before, NaN for the others."""
        unknown = {
            group.name: torch.full((group.channels,), math.nan, dtype=torch.float64)
            for group in self._graph.prunable
            if group.name in start
        }
        if resume is None:
            return unknown
        shapes = {name: tensor.shape for name, tensor in unknown.items()}
        if {name: resume[name].shape for name in resume} != shapes:
            raise UsageError("resume: what was measured before belongs to another network")
        if resume.examples != self._script.examples or abs(resume.loss - loss) > 1e-6 * max(1.0, abs(loss)):
            raise UsageError(
                "resume: what was measured before belongs to other examples or weights "
                f"(loss {resume.loss:.6g} over {resume.examples} examples, "
                f"now {loss:.6g} over {self._script.examples})"
            )
        return {name: resume[name] for name in unknown}

    def _losses(self, group: Group, unknown: Tensor, loss: float) -> Iterator[tuple[list[int], list[float]]]:
        """Channels whose removal is not measured yet, some at a time, and the losses without each."""
        waiting = unknown.nonzero().flatten().tolist()
        silent = [channel for channel in waiting if is_silent(self._whole, self._without(group, channel))]
        if silent:
            yield silent, [loss] * len(silent)
        waiting = [channel for channel in waiting if channel not in silent]
        together = self._script.copies > 1 and self._can_share(group)
        step = self._script.copies if together else 1
        for at in range(0, len(waiting), step * self._ranks.world_size):
            turn = waiting[at : at + step * self._ranks.world_size]
            mine = turn[self._ranks.rank * step :][:step]
            found = self._losses_of(self._pass(group, mine, together))[: len(mine)] if mine else []
            yield turn, list(chain.from_iterable(self._ranks.all_gather(found)))

    def _can_share(self, group: Group) -> bool:
        """Whether channels of a group that share a pass come out as they do alone."""
        together, alone = (self._pass(group, [0, 1], shared)[0] for shared in (True, False))
        return torch.allclose(together, alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))

    def _pass(self, group: Group, channels: list[int], together: bool) -> Tensor:
        """Outputs without each of some channels, shape ``(copies, examples, ...)``."""
        rows = [self._without(group, channel) for channel in channels]
        # Copies that are left over are masked like the last.
        rows += rows[-1:] * (self._script.copies - len(rows))
        removed = np.stack(rows) if together else rows[0]
        outputs = self._whole.fork(removed, self._tensors).outputs()
        return outputs if self._script.copies > 1 else outputs[None]

    def _losses_of(self, outputs: Tensor) -> list[float]:
        targets = self._targets.to(outputs.device)
        return [float(self._loss_fn(one, targets).double()) for one in outputs]

    def _without(self, group: Group, channel: int) -> Removed:
        return cut_alone(self._graph, group, [other for other in range(group.channels) if other != channel])
