"""Train in several processes: each works on a part of every batch, and all take the same step.

Fabric starts the process group. ``DistributedDataParallel`` averages gradients, weighted by the number of
examples of each process. Batch norm is synchronised where PyTorch can do it, on GPUs.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from secateur._compat import _BatchNorm
from secateur.errors import UsageError
from secateur.ranks import RankBatch, Ranks
from secateur.training.settings import DeviceSettings


class WeightedDDPStrategy(DDPStrategy):
    """Average gradients over processes, weighted by their examples.

    The result is the gradient of the mean over the whole batch, also if the parts differ in size.
    Buffers are left to :func:`share_buffers`. Parameters may be unused, but always the same ones.

    Args:
        **settings: of the base class.

    Attributes:
        weight: weight of this process's examples in the mean over the current batch. Set it before each
            backward pass; 0 if the example here belongs to another process.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(static_graph=True, **settings)
        self.weight = 1.0

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap a network, and register the weighted sum of its gradients."""
        wrapped = super().setup_module(module)
        wrapped.broadcast_buffers = False
        wrapped.register_comm_hook(self, _weighted_sum)
        return wrapped


def _weighted_sum(strategy: WeightedDDPStrategy, bucket):  # type: ignore[no-untyped-def]  # PyTorch refuses text
    """Sum the gradients of a bucket over all processes, by their weights."""
    gradients = bucket.buffer()
    if strategy.weight:
        gradients.mul_(strategy.weight)
    else:
        gradients.zero_()  # a product with zero would keep what is not finite
    work = dist.all_reduce(gradients, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


_IS_THERE: Mapping[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


def make_fabric(settings: DeviceSettings) -> Fabric:
    """Open the device of this process, and connect it to the other processes of the run.

    For several devices, the calling process has to be one of as many, started by ``torchrun`` (or by
    ``secateur --devices``).

    Args:
        settings: where and how to compute.

    Raises:
        UsageError: there are fewer processes than devices, or no such device.
    """
    is_distributed = settings.devices * settings.nodes > 1
    if is_distributed:
        _check_started(settings)
    if not _IS_THERE[settings.accelerator]():
        raise UsageError(
            f"device: there is no {settings.accelerator} device on this machine that PyTorch can use; choose "
            "auto or cpu"
        )
    with _quiet(), _usage_errors():
        device = Fabric(accelerator=settings.accelerator, devices=1).device
        precision: Literal["bf16-mixed", "32-true"] = (
            "bf16-mixed" if uses_bf16(settings, device) else "32-true"
        )
        # Gradients are sent from the GPU; plans, scores and messages from the CPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=precision,
            strategy=WeightedDDPStrategy(process_group_backend=backend) if is_distributed else "auto",
        )
        fabric.launch()
    return fabric


def fabric_on(device: torch.device) -> Fabric:
    """Open one device in float32, for a process that works by itself."""
    devices = [device.index or 0] if device.type == "cuda" else 1
    with _quiet(), _usage_errors():
        return Fabric(accelerator=device.type, devices=devices, precision="32-true")


def _check_started(settings: DeviceSettings) -> None:
    """Refuse to wait for processes that were not started."""
    wanted, found = settings.devices * settings.nodes, int(os.environ.get("WORLD_SIZE", "1"))
    if wanted != found:
        raise UsageError(
            f"{settings.devices} devices on {settings.nodes} machines need {wanted} processes, and this is "
            f"one of {found}: start them with torchrun --nproc-per-node={settings.devices}"
        )


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn Fabric's errors about missing devices into one line."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Fabric's warnings of unused devices, and its list of processes."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def uses_bf16(settings: DeviceSettings, device: torch.device) -> bool:
    """Return whether products are computed in bfloat16.

    Args:
        settings: ``auto`` asks the device.
        device: where to compute.
    """
    return settings.precision == "bf16" or (settings.precision == "auto" and has_bf16_units(device))


def has_bf16_units(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


def set_weight(fabric: Fabric, weight: float) -> None:
    """Set the weight of this process's examples in the gradient of the current batch."""
    if isinstance(fabric.strategy, WeightedDDPStrategy):
        fabric.strategy.weight = weight


_SYNCHRONISED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synchronized_batch_norm(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let the batch norms on GPUs use the statistics of whole batches for a block.

    The modules take the forward pass of ``torch.nn.SyncBatchNorm``, and keep their identity and hooks. On a
    CPU, where PyTorch has no synchronised batch norm, each process uses the statistics of its part.

    Args:
        model: the network.
        ranks: the processes of the run.
    """
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and type(module) in _SYNCHRONISED and _is_on_gpu(module)
    ]
    if not ranks.is_distributed:
        norms = []
    classes = [type(norm) for norm in norms]
    try:
        for norm in norms:
            norm.process_group = None  # all processes
            norm.__class__ = nn.SyncBatchNorm
        yield
    finally:
        for norm, its_class in zip(norms, classes, strict=True):
            norm.__class__ = its_class
            vars(norm).pop("process_group", None)


def _is_on_gpu(norm: _BatchNorm) -> bool:
    tensors = (norm.weight, norm.running_mean)
    return any(tensor is not None and tensor.is_cuda for tensor in tensors)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give all processes the buffers of the main process.

    Each process updates running statistics with its own examples.

    Args:
        model: the network.
        ranks: the processes of the run.
    """
    if ranks.is_distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def mean_loss(value: float, part: RankBatch, ranks: Ranks) -> float:
    """Average a loss over the whole batch.

    Args:
        value: mean over the examples of this process.
        part: the examples of this process.
        ranks: the processes of the run.
    """
    if not ranks.is_distributed:
        return value
    weighted = value * part.weight if part.weight else 0.0
    return float(ranks.all_reduce_sum(torch.tensor(weighted, dtype=torch.float64)))


def drop_wrappers(ranks: Ranks) -> None:
    """Free the wrappers of an earlier phase, so that the parameters of the network can be replaced.

    A wrapper may outlive its phase in a cycle of references.

    Args:
        ranks: the processes of the run.
    """
    if ranks.is_distributed:
        gc.collect()
