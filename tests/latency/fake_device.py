"""A simulated device: the times of operators and networks follow formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.latency import Comparison, Latency
from secateur.latency.operators import OperatorCall

OVERHEAD = 0.5
"""Milliseconds of any network that belong to no operator."""


def convolution_ms(outputs: int, inputs: int) -> float:
    """Process eight channels at once on either side."""
    return 1e-3 * math.ceil(outputs / 8) * math.ceil(inputs / 8) + 1e-4 * inputs + 0.01


def other_ms(channels: int) -> float:
    """Time of any other operator."""
    return 1e-4 * channels + 0.001


class FakeTimer:
    """Times operators by the formulas above, and records the calls."""

    conditions = "a made-up device"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, call: OperatorCall) -> float:
        self.asked.append(str(call))
        if "conv2d" in call.name:
            outputs, inputs = call.specs[1].shape[:2]
            return convolution_ms(outputs, inputs)
        return other_ms(call.specs[0].shape[1])


def network_ms(model: nn.Module) -> float:
    """Time of a network of convolutions, normalisations and activations, from its modules."""
    total = OVERHEAD
    channels = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            total += convolution_ms(module.out_channels, module.in_channels)
            channels = module.out_channels
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU):
            total += other_ms(channels)
    return total


def compare(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> Comparison:
    """Replace ``compare_latency``."""
    times = {name: network_ms(model) for name, model in models.items()}
    return Comparison({name: Latency(ms, ms, ms, 9, 1, "cpu", len(inputs)) for name, ms in times.items()})
