"""Joint training: each process works on a part of every batch, and all take the step that one would take."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from secateur.criteria import ScoreCollector
from secateur.ranks import Ranks, Share


class Portion:
    """What a process has of the batch of the current step.

    Attributes:
        weight: its share of the examples. Gradients are those of means over each process's own
            examples, and count by it; a process whose example is not its own has 0.
    """

    def __init__(self) -> None:
        self.weight = 1.0


class JointStrategy(DDPStrategy):
    """Distributed data parallelism whose gradient is that of the mean over the whole batch.

    The gradients of the processes are weighted by their examples, so parts need not be of the same size.
    Buffers are left to :func:`agree_on_buffers`. Parameters may go unused, but always the same ones.

    Args:
        portion: read in every backward pass.
        **settings: of the base class.
    """

    def __init__(self, portion: Portion, **settings: Any) -> None:
        super().__init__(static_graph=True, **settings)
        self._portion = portion

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """The wrapper, which adds gradients up by their weight."""
        wrapped = super().setup_module(module)
        wrapped.broadcast_buffers = False
        wrapped.register_comm_hook(self._portion, _add_up)
        return wrapped


def _add_up(portion: Portion, bucket):  # type: ignore[no-untyped-def]  # their names would be text, and refused
    """The weighted sum of the gradients in a bucket over all processes."""
    gradients = bucket.buffer()
    if portion.weight:
        gradients.mul_(portion.weight)
    else:
        gradients.zero_()  # whatever they were, even if not finite
    work = dist.all_reduce(gradients, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def drop_wrappers(ranks: Ranks) -> None:
    """Makes sure that no wrapper of an earlier phase holds on to the parameters of a network.

    They cannot be replaced while one does, and a wrapper may outlive its phase in a cycle of references.

    Args:
        ranks: the processes of the run.
    """
    if ranks.together:
        gc.collect()


def agree_on_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Gives all processes the buffers of the first.

    Statistics of batch norms are the same already; others, which the examples of a process
    may have moved, are not.

    Args:
        model: the network.
        ranks: the processes of the run.
    """
    if ranks.together:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def mean_loss(value: float, portion: Portion, ranks: Ranks) -> float:
    """The mean loss over the whole batch.

    Args:
        value: mean over the examples of this process.
        portion: of the batch.
        ranks: the processes of the run.
    """
    if not ranks.together:
        return value
    part = value * portion.weight if portion.weight else 0.0
    return float(ranks.sum(torch.tensor(part, dtype=torch.float64)))


def seen_by(observer: Any, share: Share) -> AbstractContextManager[Any]:
    """Lets a watch know which examples of a batch are here, and look away where none is.

    Args:
        observer: what watches a training; anything but a watch is left alone.
        share: the part of this process of a batch.
    """
    if not isinstance(observer, ScoreCollector):
        return nullcontext()
    observer.expects(share.of)
    return nullcontext() if share.examples else observer.muted()
