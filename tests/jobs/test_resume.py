"""Runs that are stopped or killed, and gone on with, end at the same bits as runs that are not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import UsageError
from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.recipes import recipe
from secateur.training.events import Event
from secateur.training.interrupt import StoppedError
from secateur.training.run import RunError, read_config, read_metrics, read_summary

RECIPES: dict[str, dict[str, Any]] = {
    "all that recovers": {
        "steps": 2,
        "epochs_between": 2,
        "epochs_after": 2,
        "allocate": "curves",
        "curve_batches": 2,
        "repair": True,
        "repair_batches": 2,
        "distill": 0.5,
        "after": {"average": 0.9},
        "optimizer": {"name": "adamw", "learning_rate": 0.002},
    },
    "no training between": {"steps": 3, "epochs_between": 0, "epochs_after": 2, "criterion": "magnitude"},
    "a few updates between": {"channels_per_step": 120, "updates_between": 3, "epochs_after": 1},
}


def pruning(out: Path, trained: Path, how: str, **changes: Any) -> PruneJob:
    values: dict[str, Any] = {
        "network": {"source": str(trained)},
        "data": {"source": "digits", "batch_size": 128},
        "out": out,
        "limits": {"macs": 0.4},
        "latency_seconds": 0,
        "recipe": recipe(**RECIPES[how]),
    }
    return PruneJob.checked(**(values | changes))


def outcome(out: Path) -> tuple[bytes, list[Any]]:
    """The final checkpoint, and every epoch and cut but for the time that it took."""
    records = [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in read_metrics(out)
        if record["event"] != "note"
    ]
    return (out / "checkpoints" / "best.safetensors").read_bytes(), records


class StopAt:
    """Asks to stop at the n-th event."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, event: Event) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", RECIPES)
def test_pruning_that_is_stopped_again_and_again_ends_at_the_same_bits(
    trained: Path, tmp_path: Path, how: str
) -> None:
    prune(pruning(tmp_path / "whole", trained, how))
    events, stops, done = 12, 0, False
    while not done:
        job = pruning(tmp_path / "stopped", trained, how, resume=stops > 0)
        try:
            prune(job, StopAt(events))
            done = True
        except StoppedError as error:
            stops += 1
            events += 6 if stops < 8 else 40  # further along each time, so that it comes to an end
            assert "--resume goes on" in str(error)
    assert stops >= 2
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "stopped" / "checkpoints").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]
    assert read_summary(tmp_path / "stopped")["status"] == "done"


def test_training_that_is_stopped_ends_at_the_same_bits(small_network: str, tmp_path: Path) -> None:
    def job(out: str, resume: bool = False) -> TrainJob:
        fit = {"epochs": 4, "average": 0.9, "optimizer": {"learning_rate": 0.05}}
        return TrainJob.checked(
            network={"source": small_network, "size": 8},
            data={"source": "digits", "batch_size": 64},
            out=tmp_path / out,
            fit=fit,
            resume=resume,
            latency_seconds=0,
        )

    train(job("whole"))
    with pytest.raises(StoppedError):
        train(job("stopped"), StopAt(45))
    assert read_summary(tmp_path / "stopped")["status"] == "interrupted"
    train(job("stopped", resume=True))
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_what_cannot_be_gone_on_with_is_refused_and_kept(trained: Path, tmp_path: Path) -> None:
    how = "no training between"
    with pytest.raises(RunError, match="no run to go on with; leave --resume out"):
        prune(pruning(tmp_path / "none", trained, how, resume=True))
    with pytest.raises(StoppedError):
        prune(pruning(tmp_path / "run", trained, how), StopAt(30))
    before = read_config(tmp_path / "run")
    with pytest.raises(UsageError, match=r"--resume needs the settings.*limits.macs was 0.4 and is 0.5"):
        prune(pruning(tmp_path / "run", trained, how, resume=True, limits={"macs": 0.5}))
    assert read_config(tmp_path / "run") == before
    prune(pruning(tmp_path / "run", trained, how, resume=True))
    with pytest.raises(RunError, match="finished; there is nothing to go on with"):
        prune(pruning(tmp_path / "run", trained, how, resume=True))
    search = {"max_drop": 1.0}
    with pytest.raises(UsageError, match="search cannot be gone on with"):
        pruning(tmp_path / "run", trained, how, resume=True, limits=None, search=search)


def command(trained: Path, out: Path, what: str) -> list[str]:
    words: dict[str, list[str]] = {
        "train": ["train", "--model", str(trained), "--epochs", "5", "--lr", "0.02"],
        "prune": [
            *("prune", str(trained), "--macs", "0.3", "--steps", "3", "--epochs-between", "1"),
            *("--epochs-after", "3", "--average", "0.9", "--repair", "--distill", "0.5"),
        ],
    }
    data = ["--data", "digits", "--batch-size", "64", "--out", str(out)]
    return [sys.executable, "-m", "secateur", *words[what], *data]


def killed(words: list[str], out: Path, chance: random.Random) -> bool:
    """Runs a command and kills it shortly after some further epoch or cut; whether it ended before that."""
    log = out / "metrics.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        lines = _count(log)
        wanted = lines + chance.randint(1, 2)
        while process.poll() is None and _count(log) < wanted:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
    finally:
        _, error = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return process.returncode == 0


def _count(log: Path) -> int:
    """Lines of the log so far; every one of them must be whole."""
    return sum(json.loads(line) is not None for line in log.read_text().splitlines()) if log.is_file() else 0


def survive(trained: Path, tmp_path: Path, what: str, kills: int, seed: int) -> int:
    """Kills a command again and again, and holds its outcome against that of one left in peace."""
    chance = random.Random(seed)
    whole = tmp_path / f"{what}-whole"
    if not whole.exists():
        subprocess.run(command(trained, whole, what), check=True, stdout=subprocess.DEVNULL)
    out = tmp_path / f"{what}-{seed}"
    done, count = False, 0
    while not done and count < kills:
        resume = ["--resume"] if count else []
        done = killed([*command(trained, out, what), *resume], out, chance)
        count += not done
    if not done:
        resumed = [*command(trained, out, what), "--resume"]
        subprocess.run(resumed, check=True, stdout=subprocess.DEVNULL)
    assert outcome(out) == outcome(whole)
    assert not list(out.rglob("*.part"))
    return count


@pytest.mark.parametrize("what", ["train", "prune"])
def test_killed_runs_end_at_the_same_bits(trained: Path, tmp_path: Path, what: str) -> None:
    assert survive(trained, tmp_path, what, kills=5, seed=0) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "prune"])
def test_fifty_kills(trained: Path, tmp_path: Path, what: str) -> None:
    total, seed = 0, 1
    while total < 25:
        total += survive(trained, tmp_path, what, kills=8, seed=seed)
        seed += 1
