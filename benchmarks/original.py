"""The job that this project starts from: VGG16 on dogs and cats, 512 filters a step by Taylor.

VGG16 (or VGG16 with batch norm) is trained from nothing on ``DATA/train``; then, step by step,
512 filters go by their Taylor scores, collected during the fine-tuning epoch before the step, until
a third of the filters is left; then hidden units of the linear layers, until an eighth is left
(``--hidden-left 1`` leaves them alone, as the original did). Everything is an ordinary training
loop of one's own around four calls of the library: ``trace``, ``watch``, ``make_plan`` and
``apply_plan``, with a proof after every cut.

Against the original protocol: pictures of 48 px instead of 224, trained from nothing instead of
from ImageNet weights, one epoch after each step instead of ten, three at the end instead of fifteen.

    python benchmarks/original.py --data cats_dogs --network vgg16_bn --work runs/original

Plain VGG16 did not leave chance level when it was trained from nothing with these settings; so VGG16 with
batch norm is trained, and for ``--network vgg16`` its normalisations are folded into the convolutions:
the same function in the layers of VGG16, which from there on is pruned and fine-tuned without batch norm.

Training and pruning are kept apart, so that a second call goes on from the trained network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sec
from secateur._torchvision import torchvision
from secateur.criteria import Scores, watch
from secateur.latency import compare_latency
from secateur.models import ModelSpec
from secateur.verification import Expectation, Verification

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Pictures:
    """A folder of pictures per class, decoded once to squares a little larger than the network's input."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        side = size + size // 6
        cache = folder.parent / f".{folder.name}-{side}.safetensors"
        if cache.exists():
            held = load_file(cache)
        else:
            held = self._decode(folder, side)
            save_file(held, cache)
        self.pixels, self.targets = held["pixels"], held["targets"]

    @staticmethod
    def _decode(folder: Path, side: int) -> dict[str, Tensor]:
        resize = torchvision.transforms.v2.Compose(
            [
                torchvision.transforms.v2.Resize(side),
                torchvision.transforms.v2.CenterCrop(side),
                torchvision.transforms.v2.PILToTensor(),
            ]
        )
        pixels, targets = [], []
        for number, kind in enumerate(sorted(path.name for path in folder.iterdir() if path.is_dir())):
            for path in sorted((folder / kind).iterdir()):
                with Image.open(path) as picture:
                    pixels.append(resize(picture.convert("RGB")))
                targets.append(number)
        return {"pixels": torch.stack(pixels), "targets": torch.tensor(targets)}

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels of 0 to 255 as the network wants them."""
        return (pixels / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)

    def training(self, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches, each picture cropped and mirrored at random; the same for one epoch number."""
        draw = torch.Generator().manual_seed(epoch)
        room = self.pixels.shape[-1] - self.size
        for index in torch.randperm(len(self.targets), generator=draw).split(batch):
            crops = []
            for picture in self.pixels[index]:
                top, left, mirror = torch.randint(0, room + 1, (3,), generator=draw).tolist()
                crop = picture[:, top : top + self.size, left : left + self.size]
                crops.append(crop.flip(-1) if mirror % 2 else crop)
            yield self.normalised(torch.stack(crops)), self.targets[index]

    def evaluation(self, batch: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
        """All pictures in order, cropped in the middle."""
        low = (self.pixels.shape[-1] - self.size) // 2
        middle = self.pixels[:, :, low : low + self.size, low : low + self.size]
        for pixels, targets in zip(middle.split(batch), self.targets.split(batch), strict=True):
            yield self.normalised(pixels), targets


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """Share of pictures that are classified rightly, in percent."""
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pictures.evaluation())
    return 100 * right / len(pictures.targets)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> float:
    """One epoch of ordinary training; returns the mean loss."""
    model.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def train(model: nn.Module, data: Pictures, options: argparse.Namespace) -> None:
    """Trains from nothing with AdamW and one cycle of the learning rate."""
    steps = options.epochs * -(-len(data.targets) // options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), options.peak / 25, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak, total_steps=steps)
    for epoch in range(options.epochs):
        start = time.perf_counter()
        loss = train_epoch(model, optimizer, data.training(epoch, options.batch), schedule)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {time.perf_counter() - start:.0f} s", flush=True)


def folded(model: nn.Module) -> nn.Module:
    """VGG16 that computes what a VGG16 with batch norm computes in evaluation mode."""
    plain: nn.Module = torchvision.models.vgg16(weights=None, num_classes=2)
    layers = list(model.get_submodule("features").children())
    fused = [
        torch.nn.utils.fusion.fuse_conv_bn_eval(layer.eval(), following.eval())
        for layer, following in pairwise(layers)
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d)
    ]
    convolutions = [
        layer for layer in plain.get_submodule("features").children() if isinstance(layer, nn.Conv2d)
    ]
    for convolution, source in zip(convolutions, fused, strict=True):
        convolution.load_state_dict(source.state_dict())
    plain.get_submodule("classifier").load_state_dict(model.get_submodule("classifier").state_dict())
    return plain


@dataclass
class Work:
    """The state of the loop: what is cut, what trains it and what is known of its channels."""

    model: nn.Module
    graph: sec.ChannelGraph
    optimizer: torch.optim.Optimizer
    data: Pictures
    batch: int
    epoch: int = 1000

    def ranking_epoch(self) -> tuple[Scores, float]:
        """One epoch of fine-tuning that collects Taylor scores on the way; returns them and the loss."""
        self.epoch += 1
        with watch(self.model, self.graph, "taylor") as watched:
            loss = train_epoch(self.model, self.optimizer, self.data.training(self.epoch, self.batch))
        return watched.scores(), loss

    def cut(self, plan: sec.PruningPlan, x: Tensor) -> Verification:
        """A cut in place, optimizer and all, with its proof."""
        expectation = Expectation.of(self.model, plan, x)
        self.optimizer.zero_grad(set_to_none=True)
        sec.apply_plan(self.model, plan, optimizer=self.optimizer, inplace=True)
        check = expectation.check(self.model)
        assert check.ok, str(check)
        self.graph = self.graph.after(plan)
        return check


def prune(
    model: nn.Module, data: Pictures, test: Pictures, options: argparse.Namespace
) -> list[dict[str, float]]:
    """The original's loop, first over filters, then over hidden units of the linear layers."""
    x = next(data.evaluation(2))[0]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    work = Work(model, sec.trace(model, x), optimizer, data, options.batch)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hidden = [group.name for group in work.graph.prunable if group.name in linear]
    filters = [group.name for group in work.graph.prunable if group.name not in linear]
    scores = work.ranking_epoch()[0]
    history: list[dict[str, float]] = []
    for kind, others, share, step in (
        ("filters", hidden, options.filters_left, options.step),
        ("hidden units", filters, options.hidden_left, 4 * options.step),
    ):
        fixed = sum(work.graph[name].channels for name in others)
        left = sum(group.channels for group in work.graph.prunable) - fixed
        goal = round(left * share)
        while left > goal:
            start = time.perf_counter()
            budget = sec.Budget(channels=fixed + max(goal, left - step))
            plan = sec.make_plan(work.graph, scores, budget, widths=sec.Widths(ignore=others))
            left -= plan.channels_removed
            check = work.cut(plan, x)
            scores, loss = work.ranking_epoch()
            cost = work.graph.cost()
            row = {kind: float(left), "params": float(cost.params), "macs": float(cost.macs), "loss": loss}
            row |= {"top1": accuracy(model, test), "seconds": time.perf_counter() - start}
            history.append(row)
            print(" ".join(f"{key} {value:.4g}" for key, value in row.items()), str(check), flush=True)
    for extra in range(options.after):
        train_epoch(model, optimizer, data.training(2000 + extra, options.batch))
    return history


def main() -> None:
    """Trains if need be, prunes, measures both networks in turn and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--network", default="vgg16_bn", choices=["vgg16", "vgg16_bn"])
    parser.add_argument("--work", type=Path, default=Path("runs/original"))
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--peak", type=float, default=4e-4, help="largest learning rate of training")
    parser.add_argument("--step", type=int, default=512, help="filters a step; four times as many units")
    parser.add_argument("--filters-left", type=float, default=1 / 3)
    parser.add_argument("--hidden-left", type=float, default=1 / 8)
    parser.add_argument("--after", type=int, default=3, help="epochs at the end")
    parser.add_argument("--only-train", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data, test = (Pictures(options.data / split, options.size) for split in ("train", "test"))
    model = torchvision.models.vgg16_bn(weights=None, num_classes=2)
    trained = options.work / "vgg16_bn.safetensors"
    if trained.exists():
        model.load_state_dict(load_file(trained))
    else:
        train(model, data, options)
        save_file(model.state_dict(), trained)
    if options.network == "vgg16":
        model = folded(model)
    print(f"trained: top-1 {accuracy(model, test):.2f}", flush=True)
    if options.only_train:
        return
    report(model, data, test, options)


def report(model: nn.Module, data: Pictures, test: Pictures, options: argparse.Namespace) -> None:
    """Prunes and writes accuracy, costs, file size and latency before and after."""
    original = torchvision.models.get_model(options.network, weights=None, num_classes=2)
    original.load_state_dict(model.state_dict())
    history = prune(model, data, test, options)
    spec = f"torchvision:{options.network}"
    x = next(data.evaluation(1))[0]
    rows = {}
    for name, network in {"before": original, "after": model}.items():
        path = options.work / f"{options.network}-{name}.safetensors"
        sec.save(path, network, builder=ModelSpec.parse(spec, classes=2))
        rows[name] = {"top1": accuracy(network, test), "file_bytes": path.stat().st_size}
        rows[name] |= {"params": sec.cost(network, x).params, "macs": sec.cost(network, x).macs}
    for batch in (1, 16):
        inputs = next(data.evaluation(batch))[0]
        compared = compare_latency({"before": original, "after": model}, inputs)
        print(compared)
        for name, timing in compared.latencies.items():
            rows[name][f"ms_batch_{batch}"] = timing.median_ms
    for key in rows["before"]:
        before, after = rows["before"][key], rows["after"][key]
        print(f"{key:12} {before:14.2f} -> {after:14.2f}   ÷{before / after:.2f}")
    (options.work / f"{options.network}.json").write_text(json.dumps({**rows, "history": history}, indent=2))


if __name__ == "__main__":
    main()
