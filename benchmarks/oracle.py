"""How long leave-one-out ablation takes, compared with masking each channel and running the whole network.

A CIFAR-10 residual network. Plain masking zeroes the weights that read a channel and runs the network on all
pictures; since that takes long, it is done for every so many channels of each group (``--every``). Times are
per channel; the changes of the loss are compared.

    python benchmarks/oracle.py --data cifar10 --weights resnet56.th [--network resnet56] [--examples 128]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from cifar import Pictures, batches, pictures
from torch import nn

import secateur as sec
from secateur.ablation import ablate
from secateur.graph import Group, Role


@torch.inference_mode()
def loss_of(model: nn.Module, data: Pictures, size: int) -> float:
    """Mean loss over the pictures."""
    total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches(data, size))
    return total / len(data[1])


def masked_loss(model: nn.Module, group: Group, channel: int, data: Pictures, size: int) -> float:
    """The loss with the weights that read a channel at zero, which are put back afterwards."""
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


def main() -> None:
    """Measures both, and prints seconds per channel and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=16)
    options = parser.parse_args()
    model = sec.build(f"secateur:{options.network}", weights=options.weights).eval()
    data = pictures(options.data / "train", options.examples, 0)
    graph = sec.trace(model, data[0][:1])
    began = time.perf_counter()
    found = ablate(model, graph, batches(data, options.batch), F.cross_entropy)
    ours = (time.perf_counter() - began) / found.measured
    whole, times, worst = loss_of(model, data, options.batch), [], 0.0
    for name, changes in found.items():
        for channel in range(0, len(changes), options.every):
            began = time.perf_counter()
            loss = masked_loss(model, graph[name], channel, data, options.batch)
            times.append((time.perf_counter() - began) * min(options.every, len(changes) - channel))
            worst = max(worst, abs(loss - whole - float(changes[channel])))
    plain = sum(times) / found.measured
    print(f"{options.network}, {found.measured} channels, {options.examples} pictures")
    print(
        f"ablation {ours * 1e3:.1f} ms a channel, "
        f"plain masking {plain * 1e3:.1f} ms: {plain / ours:.2f} times"
    )
    print(f"largest difference of a change of the loss: {worst:.1e} (loss {whole:.4f})")


if __name__ == "__main__":
    main()
