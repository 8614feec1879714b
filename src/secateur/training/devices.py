"""Devices, precision, memory layout and processes: what there is, and what pays on it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.latency import device_of
from secateur.ranks import ALONE, Ranks
from secateur.training.joint import JointStrategy, Portion
from secateur.training.settings import DeviceSettings


@dataclass(frozen=True)
class Machine:
    """Where training and judging happen.

    Attributes:
        fabric: devices, precision and the processes that share the work.
        settings: what was asked for.
        portion: of the current batch; read while gradients are added up.
        ranks: the processes that share the work.
    """

    fabric: Fabric
    settings: DeviceSettings
    portion: Portion = field(default_factory=Portion)
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    def lays_channels_last(self, model: nn.Module) -> bool:
        """Whether to train a network on pictures with the channel innermost.

        ``auto`` does so where products are in bfloat16, and on a CPU for networks of which at least
        half of the convolutions are 1 by 1: measured gains were 1.4 for SqueezeNet and MobileNet v2,
        and none for ResNet-18 and VGG.

        Args:
            model: the network.
        """
        if self.settings.channels_last != "auto":
            return self.settings.channels_last == "yes"
        kernels = [module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)]
        if not kernels or uses_bf16(self.settings, self.device):
            return bool(kernels)
        return self.device.type == "cpu" and 2 * kernels.count((1, 1)) >= len(kernels)


def make_machine(settings: DeviceSettings | None = None) -> Machine:
    """The machine at hand, as the settings ask for it.

    For several devices, the process that calls this has to be one of as many, started by ``torchrun`` (or
    by ``secateur --devices``); they find each other here.

    Args:
        settings: where and how to compute; the defaults if not given.

    Raises:
        UsageError: there are not as many processes as devices are asked for.

    >>> make_machine(DeviceSettings(accelerator="cpu")).device
    device(type='cpu')
    """
    settings = settings or DeviceSettings()
    joint = settings.devices * settings.nodes > 1
    if joint:
        _check_started(settings)
    portion = Portion()
    with _quiet(), _told_wrong():
        device = Fabric(accelerator=settings.accelerator, devices=1).device
        precision: Literal["bf16-mixed", "32-true"] = (
            "bf16-mixed" if uses_bf16(settings, device) else "32-true"
        )
        # What is sent may lie on the GPU (gradients), or not (what processes tell each other).
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=precision,
            strategy=JointStrategy(portion, process_group_backend=backend) if joint else "auto",
        )
        fabric.launch()
    return Machine(fabric, settings, portion, Ranks(together=joint))


def machine_of(model: nn.Module) -> Machine:
    """Make the machine that computes where a network is, in the precision that it has.

    Args:
        model: the network.

    >>> machine_of(nn.Linear(2, 2)).device
    device(type='cpu')
    """
    device = device_of(model)
    settings = DeviceSettings(accelerator=device.type, precision="float32")
    devices = [device.index] if device.type == "cuda" else 1
    with _quiet(), _told_wrong():
        fabric = Fabric(accelerator=device.type, devices=devices, precision="32-true")
        fabric.launch()
    return Machine(fabric, settings)


def _check_started(settings: DeviceSettings) -> None:
    """Refuses to wait for processes that nobody has started."""
    wanted, found = settings.devices * settings.nodes, int(os.environ.get("WORLD_SIZE", "1"))
    if wanted != found:
        raise UsageError(
            f"{settings.devices} devices on {settings.nodes} machines need {wanted} processes, and this is "
            f"one of {found}: start them with torchrun --nproc-per-node={settings.devices}"
        )


@contextmanager
def _told_wrong() -> Iterator[None]:
    """Turns what Fabric says of devices that are not there into one line."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Fabric warns of every device that is there and not asked for, and announces its processes."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def uses_bf16(settings: DeviceSettings, device: torch.device) -> bool:
    """Whether products are computed in bfloat16.

    Args:
        settings: ``auto`` asks the device.
        device: where to compute.
    """
    return settings.precision == "bf16" or (settings.precision == "auto" and has_bf16_units(device))


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; emulation is slower than float32.

    Args:
        device: the device.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


@contextmanager
def laid_out(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """Lays a network's weights out channels-last for a block, and back to contiguous afterwards.

    Args:
        model: changed in place; parameters keep their identity.
        channels_last: whether to do anything.
    """
    if not channels_last:
        yield
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def arranged(inputs: Tensor, channels_last: bool) -> Tensor:
    """A batch of inputs in the layout of the network.

    Args:
        inputs: any tensor; only pictures (four dimensions) have a layout.
        channels_last: as given to :func:`laid_out`.
    """
    if channels_last and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs
