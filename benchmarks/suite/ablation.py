"""Time of leave-one-out ablation, compared with masking each channel and running the whole network.

A CIFAR-10 residual network. Plain masking zeroes the weights that read a channel and runs the network on all
images; since that takes long, it is done for every so many channels of each group and scaled. Times are
per channel; the changes of the loss are compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, batches, data_path, images
from benchmarks.networks import published
from benchmarks.tables import Table
from secateur.ablation import ablate
from secateur.graph import Group, Role


class Options(benchmark.Options):
    """Options.

    Attributes:
        data: folder of images in the data folder, with ``train``.
        network: a residual network for CIFAR-10.
        weights: its file in the data folder.
        examples: images that every channel is masked for.
        batch: images in a pass.
        every: mask one channel of so many plainly.
    """

    data: str = "cifar10"
    network: str = "resnet56"
    weights: str = "cifar10_resnet56-4bfd9763.th"
    examples: int = 64
    batch: int = 64
    every: int = 64


class Row(benchmark.Row):
    """One network: milliseconds for each channel, and the largest difference of a change of the loss."""

    network: str
    threads: int
    channels: int
    ablation_ms: float
    masking_ms: float
    difference: float


CASES: Mapping[str, Mapping[str, Any]] = {"one-thread": {}, "two-threads": {"threads": 2}}
QUICK: Mapping[str, Any] = {"examples": 8, "every": 256}


@torch.inference_mode()
def loss_of(model: nn.Module, data: Images, size: int) -> float:
    """Compute the mean loss over the images."""
    total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches(data, size))
    return total / len(data[1])


def masked_loss(model: nn.Module, group: Group, channel: int, data: Images, size: int) -> float:
    """Compute the loss with the weights that read a channel at zero, and restore them."""
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    saved = []
    for member in group.roles(Role.CONSUMER):
        tensor, slots = tensors[member.tensor], torch.from_numpy(member.slots[channel])
        saved.append((tensor, member.dim, slots, tensor.index_select(member.dim, slots)))
        tensor.index_fill_(member.dim, slots, 0)
    loss = loss_of(model, data, size)
    for tensor, dim, slots, values in saved:
        tensor.index_copy_(dim, slots, values)
    return loss


def run(options: Options) -> Iterator[Row]:
    """Measure both."""
    model = published(options.network, options.weights)
    data = images(data_path(options.data) / "train", options.examples, options.seeds[0])
    graph = sec.trace(model, data[0][:1])
    began = time.perf_counter()
    found = ablate(model, graph, batches(data, options.batch), F.cross_entropy)
    ours = (time.perf_counter() - began) / found.measured
    whole, seconds, worst = loss_of(model, data, options.batch), 0.0, 0.0
    for name, changes in found.items():
        for channel in range(0, len(changes), options.every):
            began = time.perf_counter()
            loss = masked_loss(model, graph[name], channel, data, options.batch)
            seconds += (time.perf_counter() - began) * min(options.every, len(changes) - channel)
            worst = max(worst, abs(loss - whole - float(changes[channel])))
    yield Row(
        network=options.network,
        threads=options.threads,
        channels=found.measured,
        ablation_ms=1e3 * ours,
        masking_ms=1e3 * seconds / found.measured,
        difference=worst,
    )


def table(rows: Sequence[Row]) -> Table:
    """Show milliseconds for each channel, and their ratio."""
    columns = ("network", "threads", "channels", "ablation, ms", "masking, ms", "times as fast", "difference")
    lines = [
        (
            row.network,
            str(row.threads),
            str(row.channels),
            f"{row.ablation_ms:.1f}",
            f"{row.masking_ms:.1f}",
            f"{row.masking_ms / row.ablation_ms:.2f}",
            f"{row.difference:.1e}",
        )
        for row in rows
    ]
    return Table(columns, lines)
