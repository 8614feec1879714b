"""The job that this project starts from: VGG16 on cats and dogs, 512 filters a step by Taylor.

VGG16 (or VGG16 with batch norm) is trained from nothing; then, step by step, 512 filters are removed by their
Taylor scores, collected during the fine-tuning epoch before the step, until a third of the filters is left;
then hidden units of the linear layers, until an eighth is left (``hidden_left=1`` leaves them alone, as the
original did). Everything is an ordinary training loop around four calls of the library: ``trace``, ``watch``,
``make_plan`` and ``apply_plan``, with a check after every cut.

Compared with the original protocol: images of 48 px instead of 224, trained from nothing instead of from
ImageNet weights, one epoch after each step instead of ten, three at the end instead of fifteen.

Plain VGG16 did not leave chance level when it was trained from nothing with these settings; so VGG16 with
batch norm is trained, and for ``vgg16`` its normalisations are folded into the convolutions: the same
function in the layers of VGG16, which from there on is pruned and fine-tuned without batch norm. The trained
network is kept and serves again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import data_path
from benchmarks.tables import Table
from secateur._torchvision import torchvision
from secateur.criteria import Scores, watch
from secateur.latency import compare_latency
from secateur.models import ModelSpec
from secateur.verification import Expectation

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Options(benchmark.Options):
    """Options.

    Attributes:
        data: folder of images in the data folder, with ``train`` and ``test``.
        network: with or without batch norm.
        work: folder of the trained network.
        size: side of the images in pixels.
        batch: images in a step.
        epochs: of training from nothing.
        peak: largest learning rate of that training.
        step: filters removed at a time; four times as many hidden units.
        filters_left: share of the filters to go down to.
        hidden_left: share of the hidden units to go down to.
        after: epochs at the end.
    """

    data: str = "cats_dogs"
    network: Literal["vgg16", "vgg16_bn"] = "vgg16_bn"
    work: Path = Path("runs/benchmarks")
    size: int = 48
    batch: int = 50
    epochs: int = 9
    peak: float = 4e-4
    step: int = 512
    filters_left: float = 1 / 3
    hidden_left: float = 1 / 8
    after: int = 3


class Row(benchmark.Row):
    """One state of the network; file and times are measured for the first and the last.

    Attributes:
        state: what was done last.
        params: parameters.
        macs: multiply-accumulates for one example.
        top1: accuracy on the test images, in percent.
        file_bytes: size of the checkpoint.
        ms_batch_1: latency of one example, in milliseconds.
        ms_batch_16: of sixteen.
    """

    state: str
    params: int
    macs: int
    top1: float
    file_bytes: int | None = None
    ms_batch_1: float | None = None
    ms_batch_16: float | None = None


CASES: Mapping[str, Mapping[str, Any]] = {"vgg16_bn": {}, "vgg16": {"network": "vgg16"}}
QUICK: Mapping[str, Any] = {
    "epochs": 1,
    "size": 32,
    "after": 1,
    "step": 2816,
    "work": "runs/benchmarks/quick",
}


class Images:
    """Images of a folder per class, decoded once to squares a little larger than the network's input."""

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
                with Image.open(path) as image:
                    pixels.append(resize(image.convert("RGB")))
                targets.append(number)
        return {"pixels": torch.stack(pixels), "targets": torch.tensor(targets)}

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise pixels of 0 to 255."""
        return (pixels / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)

    def training(self, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches, cropped and flipped at random; the same for one epoch number."""
        draw = torch.Generator().manual_seed(epoch)
        room = self.pixels.shape[-1] - self.size
        for index in torch.randperm(len(self.targets), generator=draw).split(batch):
            crops = []
            for image in self.pixels[index]:
                top, left, flip = torch.randint(0, room + 1, (3,), generator=draw).tolist()
                crop = image[:, top : top + self.size, left : left + self.size]
                crops.append(crop.flip(-1) if flip % 2 else crop)
            yield self.normalised(torch.stack(crops)), self.targets[index]

    def evaluation(self, batch: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, cropped in the middle."""
        low = (self.pixels.shape[-1] - self.size) // 2
        middle = self.pixels[:, :, low : low + self.size, low : low + self.size]
        for pixels, targets in zip(middle.split(batch), self.targets.split(batch), strict=True):
            yield self.normalised(pixels), targets


def accuracy(model: nn.Module, images: Images) -> float:
    """Compute the share of images that are classified correctly, in percent."""
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.evaluation())
    return 100 * right / len(images.targets)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> float:
    """Train one epoch; return the mean loss."""
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


def train(model: nn.Module, data: Images, options: Options) -> None:
    """Train from nothing with AdamW and one cycle of the learning rate."""
    steps = options.epochs * -(-len(data.targets) // options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), options.peak / 25, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak, total_steps=steps)
    for epoch in range(options.epochs):
        loss = train_epoch(model, optimizer, data.training(epoch, options.batch), schedule)
        print(f"epoch {epoch + 1}: loss {loss:.3f}", flush=True)


def folded(model: nn.Module) -> nn.Module:
    """Build the VGG16 that computes what a VGG16 with batch norm computes in evaluation mode."""
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
class Loop:
    """The state of the loop: the network, its graph, and what trains it."""

    model: nn.Module
    graph: sec.ChannelGraph
    optimizer: torch.optim.Optimizer
    data: Images
    batch: int
    epoch: int = 1000

    def ranking_epoch(self) -> Scores:
        """Fine-tune one epoch, collecting Taylor scores; return them."""
        self.epoch += 1
        with watch(self.model, self.graph, "taylor") as watched:
            train_epoch(self.model, self.optimizer, self.data.training(self.epoch, self.batch))
        return watched.scores()

    def cut(self, plan: sec.PruningPlan, x: Tensor) -> None:
        """Cut in place, the optimizer too, and check the cut."""
        expectation = Expectation.of(self.model, plan, x)
        self.optimizer.zero_grad(set_to_none=True)
        sec.apply_plan(self.model, plan, optimizer=self.optimizer, inplace=True)
        check = expectation.check(self.model)
        assert check.ok, str(check)
        self.graph = self.graph.after(plan)


def run(options: Options) -> Iterator[Row]:
    """Train if need be, prune, and measure both networks in alternation."""
    options.work.mkdir(parents=True, exist_ok=True)
    folder = data_path(options.data)
    data, test = (Images(folder / split, options.size) for split in ("train", "test"))
    model: nn.Module = torchvision.models.vgg16_bn(weights=None, num_classes=2)
    trained = options.work / f"vgg16_bn-{options.epochs}x{options.size}.safetensors"
    if trained.exists():
        model.load_state_dict(load_file(trained))
    else:
        train(model, data, options)
        save_file(model.state_dict(), trained)
    if options.network == "vgg16":
        model = folded(model)
    original = torchvision.models.get_model(options.network, weights=None, num_classes=2)
    original.load_state_dict(model.state_dict())
    steps = list(prune(model, data, test, options))
    x, states = next(data.evaluation(1))[0], {"trained": original, "pruned": model}
    times = {batch: milliseconds(states, next(data.evaluation(batch))[0]) for batch in (1, 16)}
    ends = {}
    for state, network in states.items():
        file = options.work / f"{options.network}-{state}.safetensors"
        sec.save(file, network, builder=ModelSpec.parse(f"torchvision:{options.network}", classes=2))
        cost = sec.cost(network, x)
        ends[state] = Row(
            state=state,
            params=cost.params,
            macs=cost.macs,
            top1=accuracy(network, test),
            file_bytes=file.stat().st_size,
            ms_batch_1=times[1][state],
            ms_batch_16=times[16][state],
        )
    yield from (ends["trained"], *steps, ends["pruned"])


def milliseconds(networks: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Measure the median latency of networks in alternation."""
    compared = compare_latency(networks, inputs)
    return {name: timing.median_ms for name, timing in compared.latencies.items()}


def prune(model: nn.Module, data: Images, test: Images, options: Options) -> Iterator[Row]:
    """Run the original's loop, first over filters, then over hidden units of the linear layers."""
    x = next(data.evaluation(2))[0]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    loop = Loop(model, sec.trace(model, x), optimizer, data, options.batch)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hidden = [group.name for group in loop.graph.prunable if group.name in linear]
    filters = [group.name for group in loop.graph.prunable if group.name not in linear]
    scores = loop.ranking_epoch()
    for kind, others, share, step in (
        ("filters", hidden, options.filters_left, options.step),
        ("hidden units", filters, options.hidden_left, 4 * options.step),
    ):
        fixed = sum(loop.graph[name].channels for name in others)
        left = sum(group.channels for group in loop.graph.prunable) - fixed
        goal = round(left * share)
        while left > goal:
            budget = sec.Budget(channels=fixed + max(goal, left - step))
            plan = sec.make_plan(loop.graph, scores, budget, widths=sec.Widths(ignore=others))
            left -= plan.channels_removed
            loop.cut(plan, x)
            scores = loop.ranking_epoch()
            cost = loop.graph.cost()
            top1 = accuracy(model, test)
            yield Row(state=f"{left:,} {kind}", params=int(cost.params), macs=int(cost.macs), top1=top1)
    for extra in range(options.after):
        train_epoch(model, optimizer, data.training(2000 + extra, options.batch))


def table(rows: Sequence[Row]) -> Table:
    """Show all states on the way."""
    columns = ("left", "top-1", "parameters", "MACs", "file", "latency, batch 1", "latency, batch 16")
    lines = [
        (
            row.state,
            f"{row.top1:.2f}%",
            f"{row.params / 1e6:.3g} M",
            f"{row.macs / 1e6:.0f} M",
            "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f} MB",
            "" if row.ms_batch_1 is None else f"{row.ms_batch_1:.1f} ms",
            "" if row.ms_batch_16 is None else f"{row.ms_batch_16:.0f} ms",
        )
        for row in rows
    ]
    return Table(columns, lines)
