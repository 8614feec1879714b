"""Detectors: mAP after the cut and after fine-tuning.

YOLO trained from random weights on BCCD (364 microscope images, three kinds of cells; its own split), then
cut to a share of the MACs and fine-tuned by the trainer of ultralytics for a fifth of the epochs. Beside it,
on the same images for the same epochs: random channels, torch-pruning 1.6.1 (which needs every C2f rewritten
without chunks), and the architecture that Secateur found, from random weights for all epochs together. mAP is
measured on the test images, which nothing else uses; epochs are chosen on the validation images.

An interrupted run continues with the next way; with ``keep``, the trained network is kept too.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sec
from benchmarks import images, peer
from benchmarks.benchmark import Options as BaseOptions
from benchmarks.benchmark import Row as BaseRow
from benchmarks.tables import Table, spread
from secateur.detection import DetectorSettings, convert_labels, open_detector, save_detector
from secateur.detection.data import calibration_batches
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import DetectorLoss, with_raw_outputs, without_raw_outputs
from secateur.detection.tuning import DetectorTuner
from secateur.integrations.libraries import library
from secateur.recipes import Recipe
from secateur.training.random_state import seeded

CLASSES = 3
OURS, RANDOM = "secateur", "random channels"
GROUP_NORM, TAYLOR = "torch-pruning 1.6.1, group norm", "torch-pruning 1.6.1, Taylor"
FROM_SCRATCH = "the same network from random weights"


class Options(BaseOptions):
    """Options.

    Attributes:
        networks: names of ultralytics.
        image_size: side of the images in pixels.
        epochs: of the training from random weights, at most.
        patience: epochs without a gain after which a training ends.
        finetune: share of the epochs for fine-tuning.
        shares: of the MACs that are left.
        calibration: images for scores, curves and reconstruction.
        ways: how channels are chosen, among the names in ``WAYS``.
        from_scratch: whether the architecture that Secateur found is trained from random weights too.
        keep: folder for trained and pruned networks, from which a later run with this folder starts; none
            by default.
    """

    networks: tuple[str, ...] = ("yolov8n", "yolo11n")
    image_size: int = 320
    epochs: int = 150
    patience: int = 30
    finetune: float = 0.2
    shares: tuple[float, ...] = (0.5, 0.25)
    calibration: int = 128
    ways: tuple[str, ...] = (OURS, RANDOM, GROUP_NORM, TAYLOR)
    from_scratch: bool = True
    keep: str = ""


class Row(BaseRow):
    """mAP of one network at a stage.

    The stages are ``trained``, ``cut alone`` (without the reconstruction that a way has), ``cut`` (and
    reconstructed), ``fine-tuned``.
    """

    network: str
    seed: int
    way: str
    share: float
    stage: str
    macs: int
    map50: float
    map: float


SMALL: Mapping[str, Any] = {"image_size": 160, "epochs": 60, "calibration": 48}
"""Half an hour a draw of one network, on one core."""
LARGER: Mapping[str, Any] = {**SMALL, "image_size": 320}

CASES: Mapping[str, Mapping[str, Any]] = {
    "bccd": {"seeds": (0, 1, 2)},
    "bccd-small": {"seeds": (0, 1, 2), "networks": ("yolov8n",), **SMALL},
    "bccd-small-yolo11": {"seeds": (0,), "networks": ("yolo11n",), **SMALL, "from_scratch": False},
    "bccd-320": {"seeds": (0,), "networks": ("yolov8n",), **LARGER, "from_scratch": False},
}
QUICK: Mapping[str, Any] = {
    "networks": ("yolov8n",),
    "image_size": 64,
    "epochs": 2,
    "finetune": 0.5,
    "shares": (0.5,),
    "calibration": 16,
    "ways": (OURS, RANDOM),
}


def run(options: Options) -> Iterator[Row]:
    """Train, cut and fine-tune."""
    for name, seed, tuner in tuners(options):
        yield from _network(name, seed, tuner, options)


def tuners(options: Options) -> Iterator[tuple[str, int, DetectorTuner]]:
    """Prepare the images; yield each network and seed with what trains it, while its seed is in use."""
    settings = DetectorSettings(
        image_size=options.image_size,
        calibration_images=options.calibration,
        options={"patience": options.patience},
    )
    with bccd() as voc, ultralytics_in_use():
        folder = voc.parent
        data = convert_labels(voc, folder / "data").data
        for seed in options.seeds:
            for name in options.networks:
                out = Path(options.keep or folder) / f"{name}-{options.image_size}-{options.epochs}-{seed}"
                with seeded(seed):
                    yield name, seed, DetectorTuner(data, out, settings, seed=seed)


@contextmanager
def bccd() -> Iterator[Path]:
    """Unpack the images with their VOC labels into a temporary folder, for the length of a block."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(images.data_path("bccd.tar")) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "BCCD"


def _network(name: str, seed: int, tuner: DetectorTuner, options: Options) -> Iterator[Row]:
    """Run all ways on one network."""
    network, untrained = trained(name, tuner, options.epochs)
    epochs = max(1, round(options.finetune * options.epochs))

    def row(way: str, share: float, stage: str, model: nn.Module) -> Row:
        found = tuner.validate(model, "test")
        side = options.image_size
        return Row(
            network=name,
            seed=seed,
            way=way,
            share=share,
            stage=stage,
            macs=sec.cost(with_raw_outputs(model), torch.zeros(1, 3, side, side)).macs,
            map50=found["metrics/mAP50(B)"],
            map=found["metrics/mAP50-95(B)"],
        )

    def done(way: str, share: float, stage: str = "fine-tuned") -> bool:
        return options.measured(network=name, seed=seed, way=way, share=share, stage=stage)

    if not done("none", 1.0, "trained"):
        yield row("none", 1.0, "trained", network)
    for share in options.shares:
        for way in options.ways:
            if done(way, share):
                continue
            with seeded(seed):
                small, bare = WAYS[way](network, tuner, share)
            if way == OURS:
                save_detector(_file_of(tuner.out, share), small)
            if bare is not None and not done(way, share, "cut alone"):
                yield row(way, share, "cut alone", bare)
            if not done(way, share, "cut"):
                yield row(way, share, "cut", small)
            tuner.train(small, epochs, tuner.validate(small))
            yield row(way, share, "fine-tuned", small)
        if options.from_scratch and not done(FROM_SCRATCH, share):
            same = _from_scratch(untrained, open_detector(_file_of(tuner.out, share), trusted=True))
            tuner.train(same, options.epochs + epochs)
            yield row(FROM_SCRATCH, share, "fine-tuned", same)


def _file_of(out: Path, share: float) -> Path:
    """Return the file of the network that Secateur cuts to a share."""
    return out / f"secateur-{share:g}.pt"


def trained(name: str, tuner: DetectorTuner, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Train a network, or read it if that was done before; return it and the untrained one."""
    network = library("ultralytics").YOLO(f"{name}.yaml").model
    network = type(network)(network.yaml, nc=CLASSES, verbose=False)
    network.task = "detect"
    untrained, file = deepcopy(network), tuner.out / "trained.pth"
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        tuner.train(network, epochs)
        torch.save(network.state_dict(), file)
    return network, untrained


Cut = Callable[[nn.Module, DetectorTuner, float], tuple[nn.Module, nn.Module | None]]
"""Returns the smaller network, and the one without reconstruction if there is a reconstruction."""


def _ours(recipe: Recipe) -> Cut:
    def cut(network: nn.Module, tuner: DetectorTuner, share: float) -> tuple[nn.Module, nn.Module | None]:
        trainer = tuner.trainer(network, 1, "data")
        raw = with_raw_outputs(network).eval()
        raw.args = trainer.args
        batches = calibration_batches(trainer, tuner.settings.calibration_images)
        inputs, _ = next(iter(batches))
        result = sec.prune(
            raw, inputs[:2], sec.Budget(macs=share), batches=batches, loss_fn=DetectorLoss(raw), recipe=recipe
        )
        small = without_raw_outputs(result.model)
        if not recipe.reconstruct:
            return small, None
        again = with_raw_outputs(network).eval()
        return small, without_raw_outputs(sec.apply_plan(again, result.plan))

    return cut


def _from_scratch(untrained: nn.Module, small: nn.Module) -> nn.Module:
    """Copy a pruned network with random weights: those of its layers as PyTorch sets them."""
    same: Any = deepcopy(small)
    with torch.no_grad():
        for module in same.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        unpruned: Any = untrained
        same.model[-1].dfl.load_state_dict(unpruned.model[-1].dfl.state_dict())
        same.model[-1].bias_init()
    return same  # type: ignore[no-any-return]


class SplitC2f(nn.Module):
    """A C2f block with two convolutions in place of one with a result in two parts, as the peer needs it.

    Args:
        block: the block; its weights are copied.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.left, self.right = deepcopy(block.cv1), deepcopy(block.cv1)
        for part, rows in ((self.left, slice(0, block.c)), (self.right, slice(block.c, 2 * block.c))):
            conv, norm = part.conv, part.bn
            conv.weight, conv.out_channels = nn.Parameter(conv.weight[rows].detach().clone()), block.c
            norm.num_features = block.c
            for name in ("weight", "bias"):
                setattr(norm, name, nn.Parameter(getattr(norm, name)[rows].detach().clone()))
            for name in ("running_mean", "running_var"):
                setattr(norm, name, getattr(norm, name)[rows].clone())
        self.m, self.cv2 = block.m, block.cv2
        self.f, self.i = block.f, block.i  # from where it reads, and its number
        vars(self)["type"] = block.type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        parts = [self.left(x), self.right(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        found: torch.Tensor = self.cv2(torch.cat(parts, 1))
        return found


def _peer(taylor: bool) -> Cut:
    def cut(network: nn.Module, tuner: DetectorTuner, share: float) -> tuple[nn.Module, None]:
        trainer = tuner.trainer(network, 1, "data")
        model = deepcopy(network)
        blocks = library("ultralytics.nn.modules.block").C2f
        for holder in list(model.modules()):
            for name, child in list(holder.named_children()):
                if isinstance(child, blocks):
                    setattr(holder, name, SplitC2f(child))
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        batches = calibration_batches(trainer, tuner.settings.calibration_images)
        x, _ = next(iter(batches))
        head: Any = model.model
        pruner = peer.pruner_of(model, x[:1], "taylor" if taylor else "group norm", [head[-1]])
        side = x.shape[-1]

        def macs() -> int:
            return sec.cost(with_raw_outputs(model), torch.zeros(1, 3, side, side)).macs

        whole = macs()

        def gradients() -> None:
            if not taylor:
                return
            raw = with_raw_outputs(model)
            raw.args = trainer.args
            loss = DetectorLoss(raw)
            for inputs, batch in batches:
                loss(raw(inputs), batch).backward()
            for mine, other in zip(model.parameters(), raw.parameters(), strict=True):
                mine.grad = other.grad

        peer.step_until(pruner, lambda: macs() <= share * whole, gradients)
        return model, None

    return cut


WAYS: Mapping[str, Cut] = {
    OURS: _ours(Recipe(finetune={"epochs": 0})),
    RANDOM: _ours(Recipe.preset("one-shot", criterion="random")),
    GROUP_NORM: _peer(taylor=False),
    TAYLOR: _peer(taylor=True),
}
"""Functions that cut a copy of a network to a share of its MACs, by how channels are chosen."""


def table(rows: Sequence[Row]) -> Table:
    """Show mAP, a row for each network, way, share and stage."""
    keys = dict.fromkeys((row.network, row.way, row.share, row.stage) for row in rows)
    lines = []
    for key in keys:
        same = [row for row in rows if (row.network, row.way, row.share, row.stage) == key]
        network, way, share, stage = key
        lines.append(
            (
                network,
                way,
                f"{share:.0%}",
                stage,
                spread([100 * row.map50 for row in same]),
                spread([100 * row.map for row in same]),
            )
        )
    return Table(("network", "channels chosen by", "MACs", "stage", "mAP50", "mAP50-95"), lines)
