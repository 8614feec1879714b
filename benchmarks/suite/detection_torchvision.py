"""Detectors of torchvision: mAP after the cut and after fine-tuning.

RetinaNet on the features of MobileNetV2 (weights of ImageNet) with a pyramid of two levels is trained on BCCD
(364 microscope images, three kinds of cells; its own split), cut whole to a share of the MACs and fine-tuned
for a fifth of the epochs. Beside it, for the same epochs: random channels, and torch-pruning 1.6.1 by group
norm and by Taylor. mAP is measured on the test images, which nothing else uses; epochs are chosen on the
validation images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import secateur as sec
from benchmarks import images, peer
from benchmarks.benchmark import Options as BaseOptions
from benchmarks.benchmark import Row as BaseRow
from benchmarks.suite.detection import GROUP_NORM, OURS, RANDOM, TAYLOR, bccd
from benchmarks.tables import Table, spread
from secateur._torchvision import torchvision
from secateur.batches import own_loss
from secateur.detection import DetectorSettings
from secateur.detection.head_outputs import HeadOutputs
from secateur.detection.labels import read_labels
from secateur.detection.torchvision_pruning import DetectorJudge
from secateur.recipes import Recipe, Training
from secateur.training.loop import FitOptions, fit
from secateur.training.random_state import seeded
from secateur.training.settings import FitSettings

CLASSES = 4  # with the background
WEIGHTS = "mobilenet_v2_imagenet_features_only.pth"


class Options(BaseOptions):
    """Options.

    Attributes:
        image_size: side of the images in pixels.
        epochs: of the training on BCCD.
        finetune: share of the epochs for fine-tuning.
        rate: peak learning rate of AdamW in both.
        shares: of the MACs that are left.
        calibration: images for scores, curves and reconstruction.
        ways: how channels are chosen, among the names in ``WAYS``.
    """

    image_size: int = 160
    epochs: int = 40
    finetune: float = 0.2
    rate: float = 1e-3
    shares: tuple[float, ...] = (0.5, 0.25)
    calibration: int = 48
    ways: tuple[str, ...] = (OURS, RANDOM, GROUP_NORM, TAYLOR)


class Row(BaseRow):
    """mAP of one network at a stage.

    The stages are ``trained``, ``cut alone`` (without the reconstruction that a way has), ``cut`` (and
    reconstructed), ``fine-tuned``.
    """

    seed: int
    way: str
    share: float
    stage: str
    macs: int
    map50: float
    map: float


CASES: Mapping[str, Mapping[str, Any]] = {"bccd": {"seeds": (0,)}}
QUICK: Mapping[str, Any] = {
    "image_size": 64,
    "epochs": 1,
    "finetune": 1.0,
    "shares": (0.5,),
    "calibration": 8,
    "ways": (OURS, GROUP_NORM),
}


def run(options: Options) -> Iterator[Row]:
    """Train, cut and fine-tune."""
    with bccd() as folder:
        data = read_labels(folder)
        for seed in options.seeds:
            with seeded(seed):
                settings = DetectorSettings(
                    image_size=options.image_size, calibration_images=options.calibration
                )
                heads = HeadOutputs(_detector(options.image_size))
                yield from _draw(heads, DetectorJudge(heads.detector(), data, settings), seed, options)


def _draw(heads: HeadOutputs, judge: DetectorJudge, seed: int, options: Options) -> Iterator[Row]:
    """Train one network, and cut it in all ways."""
    tuned = max(1, round(options.finetune * options.epochs))
    side = options.image_size

    def row(way: str, share: float, stage: str, model: HeadOutputs) -> Row:
        found = judge.evaluate(model, "test")
        macs = sec.cost(model.eval(), {"images": torch.zeros(1, 3, side, side)}).macs
        return Row(
            seed=seed,
            way=way,
            share=share,
            stage=stage,
            macs=macs,
            map50=found["map50"],
            map=found["map"],
        )

    def train(model: HeadOutputs, epochs: int) -> None:
        optimizer = {"name": "adamw", "learning_rate": options.rate}
        fit(
            model,
            judge.batches("train", training=True),
            FitSettings(epochs=epochs, optimizer=optimizer),
            FitOptions(metric=judge),
        )

    train(heads, options.epochs)
    yield row("none", 1.0, "trained", heads)
    for share in options.shares:
        for way in options.ways:
            with seeded(seed):
                small, bare = WAYS[way](heads, judge, share)
            if bare is not None:
                yield row(way, share, "cut alone", bare)
            yield row(way, share, "cut", small)
            with seeded(seed):
                train(small, tuned)
            yield row(way, share, "fine-tuned", small)


def _detector(side: int) -> nn.Module:
    """Build RetinaNet on the features of MobileNetV2, with anchors as large as cells are."""
    detection: Any = torchvision.models.detection
    backbone = detection.backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v2",
        weights=None,
        fpn=True,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=6,
    )
    known = torch.load(images.data_path(WEIGHTS), map_location="cpu", weights_only=True)
    known = {name.removeprefix("features."): value for name, value in known.items()}
    backbone.body.load_state_dict({name: known[name] for name in backbone.body.state_dict()})
    sizes = tuple((size, round(size * 1.26), round(size * 1.59)) for size in (16, 32, 64))
    anchors = detection.anchor_utils.AnchorGenerator(sizes, ((0.7, 1.0, 1.4),) * len(sizes))
    detector: nn.Module = detection.RetinaNet(
        backbone, num_classes=CLASSES, anchor_generator=anchors, min_size=side, max_size=side
    )
    return detector


Cut = Callable[[HeadOutputs, DetectorJudge, float], tuple[HeadOutputs, HeadOutputs | None]]
"""Returns the smaller network, and the one without reconstruction if there is a reconstruction."""


def _ours(recipe: Recipe) -> Cut:
    def cut(heads: HeadOutputs, judge: DetectorJudge, share: float) -> tuple[HeadOutputs, HeadOutputs | None]:
        whole = copy.deepcopy(heads).eval()
        batches = judge.batches("train", most=judge.settings.calibration_images)
        inputs = {"images": next(iter(batches))["images"][:2]}
        result = sec.prune(
            copy.deepcopy(whole), inputs, sec.Budget(macs=share), batches=Training(batches), recipe=recipe
        )
        bare: Any = sec.apply_plan(whole, result.plan) if recipe.reconstruct else None
        small: Any = result.model
        return small, bare

    return cut


def _peer(taylor: bool) -> Cut:
    def cut(heads: HeadOutputs, judge: DetectorJudge, share: float) -> tuple[HeadOutputs, None]:
        model: Any = copy.deepcopy(heads).eval()
        batches = judge.batches("train", most=judge.settings.calibration_images)
        x = next(iter(batches))["images"][:1]
        head = model.head
        left_alone = [head.classification_head.cls_logits, head.regression_head.bbox_reg]
        pruner = peer.pruner_of(model, x, "taylor" if taylor else "group norm", left_alone)

        def macs() -> int:
            return sec.cost(model, {"images": x}).macs

        whole = macs()

        def gradients() -> None:
            if taylor:
                for batch in batches:
                    own_loss(model(**batch), batch).backward()

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
    """Show mAP, a row for each way, share and stage."""
    lines = []
    for way, share, stage in dict.fromkeys((row.way, row.share, row.stage) for row in rows):
        same = [row for row in rows if (row.way, row.share, row.stage) == (way, share, stage)]
        figures = (spread([100 * row.map50 for row in same]), spread([100 * row.map for row in same]))
        lines.append((way, f"{share:.0%}", stage, *figures))
    return Table(("channels chosen by", "MACs", "stage", "mAP50", "mAP50-95"), lines)
