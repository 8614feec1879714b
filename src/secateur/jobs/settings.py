"""What a job is told, checked as a whole before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from secateur.budget import Budget
from secateur.recipes import Recipe, Unit
from secateur.settings import Settings
from secateur.training.settings import DeviceSettings, FitSettings


class DataChoice(Settings):
    """Which pictures, and how they are handed out.

    Attributes:
        source: a folder, or ``digits``.
        batch_size: pictures in a batch.
        strict: refuse unreadable pictures instead of leaving them out.
        mixup: how training pictures are blended with each other, as in :class:`secateur.data.DataSettings`.
    """

    source: str
    batch_size: int = Field(default=32, ge=1)
    strict: bool = False
    mixup: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class NetworkChoice(Settings):
    """Which network, and where its weights come from.

    Attributes:
        source: a run folder, a checkpoint, or a name such as ``torchvision:resnet18``.
        weights: ``default`` for the published ones, ``none``, or a file; for a name only. If not given,
            the published ones where there are any.
        size: side of the square pictures in pixels; the network's own if not given.
        classes: outputs of a network that is built by name, where no data says it.
        builder: ``path/to/file.py:function`` for a checkpoint of a network that a file of the user's builds.
        trusted: whether an exported ``.pt2`` file may be opened, which can run code that it holds.
    """

    source: str
    weights: str | None = None
    size: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=1)
    builder: str | None = None
    trusted: bool = False


class Conditions(Settings):
    """Under which times are taken: every combination is.

    Attributes:
        runtimes: of networks; an exported file has a runtime of its own.
        batches: examples in the forward pass.
        threads: of the CPU; as PyTorch is set to if none are given.
        seconds: time spent on each network under each condition.
        memory: whether peak memory is measured too, by a process for each network.
    """

    runtimes: tuple[Literal["eager", "channels-last", "compile", "bf16", "onnxruntime"], ...] = Field(
        default=("eager",), min_length=1
    )
    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    threads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    seconds: float = Field(default=1.0, ge=0)
    memory: bool = False


class ExportChoice(Settings):
    """What an exported file is to be.

    Attributes:
        out: the file.
        format: ``onnx`` or ``pt2``; by the end of the file's name if not given.
        weights_as: how weights are kept.
    """

    out: Path
    format: str | None = None
    weights_as: str = "float32"


class Job(Settings):
    """What every job that fills a run folder is told.

    Attributes:
        network: what to work on.
        out: the run folder.
        overwrite: replace an earlier run there.
        resume: go on with an earlier run there.
        seed: start of all random numbers.
        device: where to compute.
        latency_batch: examples in the forward pass whose time is measured.
        latency_seconds: time spent on measuring each network.
        typed: the command line that the job came from, if it came from one, for the record.
    """

    network: NetworkChoice
    out: Path
    overwrite: bool = False
    resume: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: DeviceSettings = DeviceSettings()
    latency_batch: int = Field(default=1, ge=1)
    latency_seconds: float = Field(default=1.0, ge=0)
    typed: str | None = None


class TrainJob(Job):
    """Train a network on pictures.

    Attributes:
        data: what to train on.
        fit: the training itself.
    """

    data: DataChoice
    fit: FitSettings = FitSettings()


class Search(Settings):
    """Look for the smallest network that is good enough.

    Attributes:
        max_drop: percentage points of accuracy on the validation pictures that may be lost.
        of: what is made small.
        tries: how many networks are made at most.
    """

    max_drop: float = Field(ge=0, lt=100)
    of: Unit = "macs"
    tries: int = Field(default=6, ge=1)


class PruneJob(Job):
    """Make a network smaller.

    Attributes:
        data: what to rank and fine-tune on; without, weights alone decide and nothing is trained.
        budget: what may remain.
        search: what may be lost instead.
        recipe: how to get there.
        measured: an earlier run whose scores and width curves are used again.
    """

    data: DataChoice | None = None
    budget: Budget | None = None
    search: Search | None = None
    recipe: Recipe = Recipe()
    measured: Path | None = None

    @model_validator(mode="after")
    def _one_goal(self) -> PruneJob:
        if (self.budget is None) == (self.search is None):
            raise ValueError("say either what may remain or what may be lost, and not both")
        if self.search is not None and self.resume:
            raise ValueError("a search cannot be gone on with; start it anew with --measured and this run")
        if self.data is None and (self.search is not None or self.measured is not None):
            raise ValueError("a search, and earlier measurements, need data")
        return self
