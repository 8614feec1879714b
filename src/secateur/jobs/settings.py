"""Define the settings of all jobs; they are checked together before a job starts.

Nothing here imports PyTorch, so that wrong settings are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from secateur.budget import Budget
from secateur.detection.labels import is_labelled_folder
from secateur.detection.settings import DetectorSettings
from secateur.errors import closest_or_all
from secateur.files import EXPORTED
from secateur.language.documents import SUFFIXES, is_text_folder
from secateur.language.settings import TextSettings
from secateur.recipes import Recipe
from secateur.settings import Need, Settings
from secateur.training.settings import DeviceSettings, FitSettings

DATA_FREE = "magnitude"
"""The criterion where there is no data, only weights."""

WITHOUT_DATA = (
    *("criterion", "normalize", "allocation", "attention"),
    *("widths", "cost_regularization", "filters_only"),
)
"""Settings of a recipe that have an effect without data: one cut is made, and nothing is trained."""


class DataChoice(Settings):
    """Choose images or text, and how they are read.

    Attributes:
        source: a folder of images, ``digits``, the ``data.yaml`` of a detector; for a language model a text
            file, JSON lines, or a folder of them.
        batch_size: images or blocks of text in a batch; 32 images or 4 blocks if not given.
        strict: refuse unreadable images instead of leaving them out.
        mixup: alpha of mixup of training images, as in :class:`secateur.data.DataSettings`; 0 for none. If
            not given, 1 for fine-tuning with a teacher on few images, and otherwise 0.
        held_out: share of ``train/`` that is held out for validation where there is no ``val/``; with 0, all
            images are trained on and the last network is kept. Of a text, the last part is held out.
        text: how text is divided into blocks.
    """

    source: str
    batch_size: int | None = Field(default=None, ge=1)
    strict: bool = False
    mixup: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    held_out: float = Field(default=0.1, ge=0, lt=1)
    text: TextSettings = TextSettings()

    @field_validator("source")
    @classmethod
    def _is_there(cls, source: str) -> str:
        if source.endswith((".yaml", ".yml")) and Path(source).is_file():
            return source
        if (Path(source) / "data.yaml").is_file():
            raise ValueError(f"{source} holds a data.yaml; give {Path(source) / 'data.yaml'}")
        if source != "digits" and not Path(source).exists():
            kind = "file" if Path(source).suffix in (".yaml", ".yml", *SUFFIXES) else "folder"
            raise ValueError(
                f"there is no {kind} {source}; give a folder of images, the word digits, for a language "
                "model a text, or for a detector its data.yaml"
            )
        return source

    @property
    def has_boxes(self) -> bool:
        """Return whether these are images with labelled boxes: a ``data.yaml``, or VOC or COCO labels."""
        return self.source.endswith((".yaml", ".yml")) or is_labelled_folder(self.source)


class Data(Settings):
    """Choose data alone, for commands that have no other settings.

    Attributes:
        data: images or text.
    """

    data: DataChoice


def is_text(source: str) -> bool:
    """Return whether a user's word for data is a text: a file, or a folder with files of text.

    >>> is_text("digits"), is_text("data.yaml")
    (False, False)
    """
    path = Path(source)
    if path.is_dir():
        return is_text_folder(path)
    return path.is_file() and path.suffix not in (".yaml", ".yml")


class NetworkChoice(Settings):
    """Choose a network, and where its weights come from.

    Attributes:
        source: a run folder, a checkpoint, or a name such as ``torchvision:resnet18``.
        weights: ``default`` for the published ones, ``none``, or a file; for a name only. If not given,
            the published ones where there are any.
        size: side of the square images in pixels; the network's own if not given.
        classes: outputs of a network that is built by name, where no data says it.
        builder: ``path/to/file.py:function`` for a checkpoint of a network that the user's file builds.
        trusted: whether a ``.pt2`` or ``.pt`` file may be opened, which can run code that it holds.
    """

    source: str
    weights: str | None = None
    size: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=1)
    builder: str | None = None
    trusted: bool = False

    @field_validator("source")
    @classmethod
    def _is_there(cls, source: str) -> str:
        named = is_checkpoint(source) or source.endswith(EXPORTED) or ".py:" in source
        if named and not _file_of(source).exists():
            raise ValueError(
                f"{_file_of(source)} does not exist; give a run folder, a checkpoint, or the name of a "
                "network such as torchvision:resnet18"
            )
        return source

    @field_validator("weights")
    @classmethod
    def _weights_are_there(cls, weights: str | None) -> str | None:
        if weights not in (None, "default", "none") and not Path(str(weights)).is_file():
            raise ValueError(f"there is no file {weights}; give default, none, or a file of weights")
        return weights

    @field_validator("builder")
    @classmethod
    def _builder_is_there(cls, builder: str | None) -> str | None:
        if builder is not None and not (".py:" in builder and _file_of(builder).is_file()):
            raise ValueError(
                f"{builder!r} does not name a function in an existing file; give FILE.py:FUNCTION"
            )
        return builder


def takes_boxes(network: NetworkChoice, data: DataChoice | None) -> bool:
    """Return whether a job is one on a detector: its network is a pickle, or its images have labelled boxes.

    A classifier of ultralytics in a ``.pt`` file counts as a detector too: ultralytics reads its images.
    """
    return is_pickled(network.source) or (data is not None and data.has_boxes)


def is_pickled(source: str) -> bool:
    """Return whether a user's word is a ``.pt`` file, a pickled network of ultralytics.

    >>> is_pickled("runs/detect/train/weights/best.pt"), is_pickled("best.safetensors")
    (True, False)
    """
    return source.endswith(".pt") and not _names_a_family(source)


def is_checkpoint(source: str) -> bool:
    """Return whether a user's word is a file or folder, not the name of a network.

    >>> is_checkpoint("torchvision:resnet18"), is_checkpoint("runs/a/checkpoints/best.safetensors")
    (False, True)
    >>> is_checkpoint("hf:models/bert")
    False
    """
    if _names_a_family(source):
        return False
    is_path = "/" in source or Path(source).exists() or source.endswith(".safetensors")
    return is_path and ".py:" not in source


def _names_a_family(source: str) -> bool:
    """Return whether a word is the name of a network after that of a library: ``hf:models/bert``."""
    return re.match(r"[a-z]{2,}:", source) is not None


def _file_of(source: str) -> Path:
    """Return the file of ``FILE.py:FUNCTION``, or the path itself.

    >>> _file_of("nets/mine.py:small").name
    'mine.py'
    """
    file, colon, _ = source.partition(".py:")
    return Path(f"{file}.py" if colon else source)


class Conditions(Settings):
    """Conditions under which times are measured; all combinations are measured.

    Attributes:
        runtimes: of networks; an exported file runs only in its own runtime.
        batches: examples in the forward pass.
        threads: of the CPU; as PyTorch is set to if none are given.
        seconds: time spent on each network under each condition.
        memory: whether peak memory is measured too, in a separate process for each network.
        prompt: tokens that language models read before the tokens that they write.
    """

    runtimes: tuple[Literal["eager", "channels-last", "compile", "bf16", "onnxruntime"], ...] = Field(
        default=("eager",), min_length=1
    )
    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    threads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    seconds: float = Field(default=1.0, ge=0)
    memory: bool = False
    prompt: int = Field(default=256, ge=1)


class ExportChoice(Settings):
    """Choose the file to export.

    Attributes:
        out: the file; for ``hf`` the folder.
        format: ``onnx``, ``pt2``, or ``hf`` for a folder that transformers loads; by the ending of the file's
            name if not given.
        weights_as: how weights are kept.
    """

    out: Path
    format: Literal["onnx", "pt2", "hf"] | None = None
    weights_as: Literal["float32", "float16", "bfloat16", "int8"] = "float32"

    @field_validator("out")
    @classmethod
    def _can_be_written(cls, out: Path) -> Path:
        if not out.absolute().parent.is_dir():
            raise ValueError(f"{out} cannot be written: there is no folder {out.parent}")
        return out

    @model_validator(mode="after")
    def _has_a_format(self) -> ExportChoice:
        if self.format is None and not self.out.name.endswith(EXPORTED):
            raise ValueError(f"{self.out}: end its name in {' or '.join(EXPORTED)}, or give the format")
        if self.format == "hf" and self.weights_as != "float32":
            raise ValueError("the format hf keeps the weights as they are; leave --weights-as out")
        return self


class Job(Settings):
    """Settings of every job that fills a run folder.

    Attributes:
        network: what to work on.
        out: the run folder.
        overwrite: replace an earlier run there.
        resume: continue an earlier run there.
        seed: of all random numbers.
        device: where to compute.
        latency_batch: examples in the forward pass whose time is measured.
        latency_context: for causal language models of transformers: the time is that of one more token with
            so many tokens in the cache; 0 for the time of a whole block of tokens without a cache.
        latency_seconds: time spent on measuring each network.
        tensorboard: write ``tensorboard/`` in the run folder too, with accuracy and costs as curves.
        command_line: the command line that the job came from, if it came from one, for the record.
        given: dotted paths of the settings that the user gave, those of a recipe without ``recipe.``, for
            which having no effect is a mistake, unlike for those of a file. It is not recorded.
    """

    network: NetworkChoice
    out: Path
    overwrite: bool = False
    resume: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: DeviceSettings = DeviceSettings()
    latency_batch: int = Field(default=1, ge=1)
    latency_context: int = Field(default=0, ge=0)
    latency_seconds: float = Field(default=1.0, ge=0)
    tensorboard: bool = False
    command_line: str | None = None
    given: frozenset[str] = Field(default=frozenset(), exclude=True)

    @model_validator(mode="after")
    def _in_one_process(self) -> Self:
        """Refuse several processes for a detector."""
        data: DataChoice | None = getattr(self, "data", None)
        if takes_boxes(self.network, data) and self.device.devices * self.device.nodes > 1:
            raise ValueError("device.devices: work on a detector is not shared; leave devices and nodes out")
        return self

    def needs(self) -> Iterator[Need]:
        """List settings that have no effect in this job, other than those that its recipe lists."""
        yield from ()


def _images_by_class(data: DataChoice) -> DataChoice:
    """Refuse labelled boxes."""
    if data.has_boxes:
        raise ValueError(
            f"{data.source} has labelled boxes, which this command does not read; give a folder of images by "
            "class (detectors: secateur prune and secateur evaluate)"
        )
    return data


def _existing_run(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"there is no run {path}")
    if path.is_dir() and not (path / "measured.json").is_file():
        raise ValueError(f"{path} holds no measured.json; give the folder of a run that measured something")
    return path


class TrainJob(Job):
    """Train a network on images.

    Attributes:
        data: the images to train on.
        fit: the training itself.
    """

    data: Annotated[DataChoice, AfterValidator(_images_by_class)]
    fit: FitSettings = FitSettings()

    def needs(self) -> Iterator[Need]:
        """List settings of the training that need another one."""
        yield from self.fit.needs("fit")


class FrontierJob(Job):
    """Compute the trade-off between cost and accuracy of a network.

    Attributes:
        data: the images or the text to measure, reconstruct and evaluate on.
        by: the quantity that is limited.
        points: number of budgets.
        recipe: how scores, plans and cuts are made; nothing is trained.
        measured: an earlier run of the same network, whose scores and width curves are used again.
        detector: how a detector reads images.
    """

    data: DataChoice
    by: Literal["macs", "params", "latency"] = "macs"
    points: int = Field(default=8, ge=1)
    recipe: Recipe = Recipe()
    measured: Annotated[Path, AfterValidator(_existing_run)] | None = None
    detector: DetectorSettings = DetectorSettings()

    def needs(self) -> Iterator[Need]:
        """List settings that a frontier does not have, since it cuts once and trains nothing."""
        for name in ("steps", "channels_per_step"):
            yield Need(name, True, "on a frontier, whose points are made in one cut")
        yield Need(
            "reconstruct", not self.recipe.reconstruct, "on a frontier, whose points are reconstructed"
        )
        untrained = "on a frontier, which trains nothing"
        yield from self.recipe.training_needs(untrained)
        yield Need("data.mixup", bool(self.data.mixup), untrained)


def _can_be_limited(quantity: str) -> str:
    if quantity not in Budget.model_fields:
        raise ValueError(f"there is no quantity '{quantity}'{closest_or_all(quantity, Budget.model_fields)}")
    return quantity


class Search(Settings):
    """Search for the smallest network that loses at most a given accuracy.

    Attributes:
        max_drop: percentage points of accuracy on the validation images that may be lost.
        of: the quantity that is minimised.
        tries: largest number of networks that are pruned.
    """

    max_drop: float = Field(ge=0, lt=100)
    of: Annotated[str, AfterValidator(_can_be_limited)] = "macs"
    tries: int = Field(default=6, ge=1)


class PruneJob(Job):
    """Prune a network.

    Attributes:
        data: the images to rank and fine-tune on; without them, only weights are used and nothing is trained.
        budget: what may remain.
        search: which loss of accuracy is allowed, in place of a budget.
        recipe: how to prune and train.
        measured: an earlier run of the same network, whose scores and width curves are used again.
        detector: how a detector reads images, and how ultralytics trains it.
    """

    data: DataChoice | None = None
    budget: Budget | None = None
    search: Search | None = None
    recipe: Recipe = Recipe()
    measured: Annotated[Path, AfterValidator(_existing_run)] | None = None
    detector: DetectorSettings = DetectorSettings()

    def needs(self) -> Iterator[Need]:
        """List settings of the recipe that need data."""
        if self.data is not None:
            return
        reason = "without --data", "give --data"
        training = list(self.recipe.training_needs(*reason))
        yield from training
        trained = {need.path.partition(".")[0] for need in training}
        for name in sorted(set(Recipe.model_fields) - set(WITHOUT_DATA) - trained):
            yield Need(name, True, *reason)

    @model_validator(mode="after")
    def _one_goal(self) -> PruneJob:
        if (self.budget is None) == (self.search is None):
            raise ValueError("give a budget (what may remain) or a search (what may be lost), not both")
        if self.search is not None and self.resume:
            raise ValueError(
                "--resume cannot be combined with --max-drop; start a new run with --measured RUN to "
                "reuse the width curves of this one"
            )
        if self.data is None and (self.search is not None or self.measured is not None):
            raise ValueError("--max-drop and --measured need data; give --data")
        if self.data is None and self.recipe.allocation == "curves":
            raise ValueError(
                "allocation 'curves' needs data; give --data, or choose allocation 'global' or 'uniform'"
            )
        return self
