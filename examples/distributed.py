"""Score, cut and train in several processes started by torchrun, in your own training loop."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import secateur as sec
from secateur.criteria import watch


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, epochs: int) -> None:
    """Train in an ordinary loop. The wrapper exists only during this call, and not at the cut."""
    wrapped = DistributedDataParallel(model.train())
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x), y).backward()
            optimizer.step()


def are_alike(model: nn.Module) -> bool:
    """Check that all processes have the same weights."""
    mine = nn.utils.parameters_to_vector(model.parameters()).detach()
    dist.all_gather(found := [torch.empty_like(mine) for _ in range(dist.get_world_size())], mine)
    return all(torch.equal(mine, other) for other in found)


def show(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Print a row of the table in the first process."""
    with torch.inference_mode():
        accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
    need = sec.cost(model, x[:1])
    if dist.get_rank() == 0:
        print(f"{name:12}{accuracy:>10.1%}{need.params:>14,}{need.macs:>14,}")


def main() -> None:
    """Train, cut to 20% of the MACs, continue training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    epochs = parser.parse_args().epochs
    if not dist.is_torchelastic_launched():
        parser.error("start it with: torchrun --standalone --nproc-per-node=2 examples/distributed.py")
    dist.init_process_group("gloo")

    torch.manual_seed(0)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = (images.float() / 16).reshape(-1, 1, 8, 8)
    data, test = TensorDataset(images[:1347], labels[:1347]), (images[1347:], labels[1347:])
    loader = DataLoader(data, batch_size=32, sampler=DistributedSampler(data))
    model = sec.build("secateur:digits")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    graph = sec.trace(model, test[0][:2])
    train(model, optimizer, loader, epochs - 1)
    with watch(model, graph, "taylor", across_ranks=True) as watched:  # on the examples of all processes
        train(model, optimizer, loader, 1)
    show("before", model, *test)
    plan = sec.make_plan(graph, watched.scores(), sec.Budget(macs=0.2))  # the same in each process
    sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    show("cut", model, *test)
    train(model, optimizer, loader, epochs // 2)
    show("trained on", model, *test)
    if not are_alike(model):
        raise RuntimeError("the processes have different weights")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
