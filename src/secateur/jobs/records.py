"""Record the settings, progress and results of a job in its run folder."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import secateur
from secateur.errors import SecateurError, StoppedError, UsageError
from secateur.jobs.settings import Job
from secateur.ranks import Ranks
from secateur.recipes import Callback, Cut, Tried
from secateur.settings import flatten, without
from secateur.training.context import RunContext
from secateur.training.events import EpochDone
from secateur.training.loop import FitState
from secateur.training.process_group import uses_bf16
from secateur.training.run_folder import CONFIG, RunFolder, read_config

STATE = "state"
"""Name of the file beside the checkpoints from which an interrupted run continues."""

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "lightning-fabric", "scikit-learn")
"""Packages whose versions can change results."""

_NOT_SETTINGS = {"overwrite", "resume", "command_line"}
_MAY_DIFFER = {"version", "tensorboard", "device.devices", "device.nodes"}


@contextmanager
def recorded(
    command: str, job: Job, context: RunContext, unused: Collection[str] = ()
) -> Iterator[RunFolder]:
    """Open a run folder for the length of a job; of several processes, the main one writes to it.

    Args:
        command: name of the job.
        job: all its settings.
        context: the device, and the processes that share the job.
        unused: dotted paths of the settings that have no effect on this job, and are not recorded.

    Yields:
        The run, whose settings are already written.

    Raises:
        RunError: the folder cannot be used.
        SecateurError: the error that stopped the job; its message ends with the path of the last good state.
    """
    settings = job.model_dump(mode="json", exclude_none=True, exclude=_NOT_SETTINGS)
    settings = {"command": command, **without(settings, unused)}
    with _opened(job, settings, context.ranks, unused) as run:
        run.configure({**settings, "version": secateur.__version__})
        run.summarise(
            command=command,
            command_line=job.command_line,
            seed=job.seed,
            settings=settings,
            environment=environment(context),
        )
        try:
            yield run
        except SecateurError as error:
            last = run.checkpoint("last")
            where = f"; the last good state is {last}" if last.is_file() else ""
            goes_on = isinstance(error, StoppedError) or run.checkpoint(STATE).is_file()
            how = "; the same command with --resume continues" if goes_on else ""
            error.args = (f"{error}{where}{how}",)
            raise


def _opened(job: Job, settings: Mapping[str, Any], ranks: Ranks, unused: Collection[str]) -> RunFolder:
    if ranks.is_main and job.resume:
        check_same(settings, job.out, unused)
    return RunFolder(job.out, overwrite=job.overwrite, resume=job.resume, is_writer=ranks.is_main)


def check_same(settings: Mapping[str, Any], out: Path, unused: Collection[str] = ()) -> None:
    """Refuse to resume a run that had other settings.

    Args:
        settings: of the command.
        out: the run folder.
        unused: dotted paths of settings that have no effect.

    Raises:
        UsageError: a setting differs.
    """
    if not (out / CONFIG).is_file():
        return  # there is no run; opening the folder reports that
    before, now = (_flat(tree) for tree in (without(read_config(out), unused), settings))
    different = sorted(name for name in {*before, *now} - _MAY_DIFFER if before.get(name) != now.get(name))
    if different:
        shown = ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in different[:3])
        raise UsageError(f"--resume needs the settings that {out} began with: {shown}")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten settings to dotted names, in the form in which files hold them.

    >>> _flat({"fit": {"epochs": 3, "options": {}}, "sizes": (1, 2)})
    {'fit.epochs': 3, 'sizes': [1, 2]}
    """
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(settings)
        if value != {}  # files hold no empty tables
    }


def environment(context: RunContext) -> dict[str, Any]:
    """Describe the environment on which results depend besides the settings.

    Args:
        context: its device and processes.
    """
    device = context.device
    return {
        "secateur": secateur.__version__,
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "system": platform.platform(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "bfloat16" if uses_bf16(context.settings, device) else "float32",
        "threads": torch.get_num_threads(),
        "processes": context.ranks.world_size,
    }


def _version(package: str) -> str | None:
    """Return the version of a package, if it is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class RunRecorder(Callback):
    """Write epochs, cuts, tries and notes to ``metrics.jsonl``.

    Args:
        run: where to write.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """Write an epoch."""
        self._run.log(epoch_record(epoch))

    def on_cut(self, cut: Cut) -> None:
        """Write a cut."""
        self._run.log({"event": "cut", **cut_record(cut)})

    def on_try(self, tried: Tried) -> None:
        """Write a try of a search."""
        self._run.log({"event": "try", **asdict(tried)})

    def on_note(self, text: str) -> None:
        """Write a note."""
        self._run.log({"event": "note", "text": text})


def epoch_record(epoch: EpochDone) -> dict[str, Any]:
    """Convert an epoch to one line of ``metrics.jsonl``.

    >>> epoch_record(EpochDone("training", 1, 5, 0.5, 0.01, 3.2))["loss"]
    0.5
    """
    return {"event": "epoch", **asdict(epoch)}


def fit_record(state: FitState) -> dict[str, Any]:
    """Convert the outcome of a training to plain values.

    Args:
        state: of the finished training.

    Returns:
        ``start``, ``kept`` and ``highest``: evaluations on the validation images before training, of the
        epoch that is kept, and the highest, ``None`` without validation; ``kept_epoch`` and ``epochs``; the
        peak ``learning_rate``, and the ``reason`` for it.
    """
    return {
        **{
            name: None if found is None else found.to_dict()
            for name, found in (("start", state.start), ("kept", state.kept), ("highest", state.highest))
        },
        "kept_epoch": state.kept_epoch,
        "epochs": state.epoch,
        "learning_rate": state.rate.value if state.rate else None,
        "reason": state.rate.reason if state.rate else None,
    }


def cut_record(cut: Cut) -> dict[str, Any]:
    """Convert a cut to plain values: removed channels and branches, remaining costs, and the verification.

    Args:
        cut: the cut.
    """
    return {
        "number": cut.number,
        "removed": {name: list(channels) for name, channels in cut.plan.removed.items()},
        "without": list(cut.plan.without),
        "cost": asdict(cut.plan.cost_after),
        "verification": cut.verification.to_dict(),
    }
