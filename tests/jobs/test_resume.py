"""Runs that are stopped or killed, and gone on with, end at the same bits as runs that are not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from secateur.checkpoint import load
from secateur.data import DataSettings
from secateur.errors import DataError, StoppedError, UsageError
from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.recipes import Recipe
from secateur.training.events import EpochDone
from secateur.training.resume import Journal
from secateur.training.run_folder import RunError, read_config, read_metrics, read_summary
from tests.recorder import Recorder

ADAM = {"name": "adamw", "learning_rate": 0.002}
RECIPES: dict[str, dict[str, Any]] = {
    "all that recovers": {
        "steps": 2,
        "allocation": "curves",
        "curve_batches": 2,
        "reconstruct": True,
        "reconstruct_batches": 2,
        "distillation": {"weight": 0.5},
        "between": {"epochs": 2, "optimizer": ADAM},
        "finetune": {"epochs": 2, "ema_decay": 0.9, "optimizer": ADAM},
    },
    "no training between": {
        "steps": 3,
        "between": {"epochs": 0},
        "finetune": {"epochs": 2},
        "criterion": "magnitude",
    },
    "a few updates between": {
        "channels_per_step": 120,
        "between": {"updates": 3},
        "finetune": {"epochs": 1},
    },
}

FEW_KILLS = 2
"""Once between writes and once within one; the slow test has fifty."""


def pruning(out: Path, network: Path | dict[str, str], how: str, **changes: Any) -> PruneJob:
    values: dict[str, Any] = {
        "network": network if isinstance(network, dict) else {"source": str(network)},
        "data": {"source": "digits", "batch_size": 128},
        "out": out,
        "budget": {"macs": 0.4},
        "latency_seconds": 0,
        "recipe": Recipe.preset("plain", **RECIPES[how]),
    }
    return PruneJob(**(values | changes))


def outcome(out: Path) -> tuple[bytes, list[Any]]:
    """The final checkpoint, and every epoch and cut but for the time that it took."""
    records = [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in read_metrics(out)
        if record["event"] != "note"
    ]
    return (out / "checkpoints" / "best.safetensors").read_bytes(), records


class StopAt(Recorder):
    """Asks to stop at the n-th event."""

    def __init__(self, number: int) -> None:
        self.left = number

    def received(self, event: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("how", "network"),
    [
        ("no training between", "small_trained"),
        *(pytest.param(how, "trained", marks=pytest.mark.slow) for how in RECIPES),
    ],
)
def test_pruning_that_is_stopped_again_and_again_ends_at_the_same_bits(
    request: pytest.FixtureRequest, tmp_path: Path, how: str, network: str
) -> None:
    trained = request.getfixturevalue(network)
    prune(pruning(tmp_path / "whole", trained, how))
    events, stops, done = 12, 0, False
    while not done:
        job = pruning(tmp_path / "stopped", trained, how, resume=stops > 0)
        try:
            prune(job, [StopAt(events)])
            done = True
        except StoppedError as error:
            stops += 1
            events += 6 if stops < 8 else 40  # further along each time, so that it comes to an end
            assert "--resume continues" in str(error)
    assert stops >= 2
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "stopped" / "checkpoints").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]
    assert read_summary(tmp_path / "stopped")["status"] == "done"


def test_training_that_is_stopped_ends_at_the_same_bits(small_network: str, tmp_path: Path) -> None:
    def job(out: str, resume: bool = False) -> TrainJob:
        fit = {"epochs": 4, "ema_decay": 0.9, "optimizer": {"learning_rate": 0.05}}
        return TrainJob(
            network={"source": small_network, "size": 8},
            data={"source": "digits", "batch_size": 64},
            out=tmp_path / out,
            fit=fit,
            resume=resume,
            latency_seconds=0,
        )

    train(job("whole"))
    with pytest.raises(StoppedError):
        train(job("stopped"), [StopAt(45)])
    assert read_summary(tmp_path / "stopped")["status"] == "interrupted"
    train(job("stopped", resume=True))
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_what_cannot_be_gone_on_with_is_refused_and_kept(
    small_trained: dict[str, str], tmp_path: Path
) -> None:
    how = "no training between"
    with pytest.raises(RunError, match="no run to continue; omit --resume"):
        prune(pruning(tmp_path / "none", small_trained, how, resume=True))
    with pytest.raises(StoppedError):
        prune(pruning(tmp_path / "run", small_trained, how), [StopAt(30)])
    before = read_config(tmp_path / "run")
    with pytest.raises(UsageError, match=r"--resume needs the settings.*budget.macs was 0.4 and is 0.5"):
        prune(pruning(tmp_path / "run", small_trained, how, resume=True, budget={"macs": 0.5}))
    assert read_config(tmp_path / "run") == before
    prune(pruning(tmp_path / "run", small_trained, how, resume=True))
    with pytest.raises(RunError, match="finished; there is nothing to continue"):
        prune(pruning(tmp_path / "run", small_trained, how, resume=True))
    search = {"max_drop": 1.0}
    with pytest.raises(UsageError, match="--resume cannot be combined with --max-drop"):
        pruning(tmp_path / "run", small_trained, how, resume=True, budget=None, search=search)


def test_an_image_that_vanishes_in_the_middle_of_a_run(
    small_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the images were too many for the memory: they are read again in every epoch.
    monkeypatch.setattr("secateur.jobs.images.DataSettings", partial(DataSettings, memory=0))
    for number in range(24):
        folder = tmp_path / "images" / ("train" if number < 16 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 9), 10 + 60 * (number % 2)).save(folder / f"{number}.png")
    lost = tmp_path / "images" / "test" / "b" / "23.png"
    train_lost = tmp_path / "images" / "train" / "b" / "15.png"

    def job(out: str, resume: bool = False) -> TrainJob:
        return TrainJob(
            network={"source": small_network, "size": 8},
            data={"source": str(tmp_path / "images"), "batch_size": 4},
            out=tmp_path / out,
            fit={"epochs": 3, "optimizer": {"learning_rate": 0.05}},
            resume=resume,
            latency_seconds=0,
        )

    class Vanish(Recorder):
        def on_epoch_end(self, epoch: EpochDone) -> None:
            if epoch.epoch == 1:
                for path in (lost, train_lost):
                    path.rename(tmp_path / path.name)

    train(job("whole"))
    with pytest.raises(DataError, match=r"15\.png.*; the same command with --resume continues") as caught:
        train(job("run"), [Vanish()])
    assert "\n" not in str(caught.value)
    for path in (lost, train_lost):
        (tmp_path / path.name).rename(path)
    train(job("run", resume=True))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


DIES_WRITING = """
import os, signal, sys
from secateur import files

left, sync = int(sys.argv.pop(1)), files._sync

def dying(path):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)

files._sync = dying
from secateur.cli import main
main()
"""
"""Kills itself at the n-th time that it waits for the disk: with a file written and not yet in its place, or
in its place and not yet known to the folder."""


def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def command(trained: Path, out: Path, what: str) -> list[str]:
    words: dict[str, list[str]] = {
        "train": ["train", "--model", str(trained), "--epochs", "5", "--lr", "0.02"],
        "prune": [
            *("prune", str(trained), "--recipe", "plain", "--macs", "0.3"),
            *sets("steps=3", "between.epochs=1", "finetune.epochs=3", "finetune.ema_decay=0.9"),
            *sets("reconstruct=true", "distillation.weight=0.5"),
        ],
    }
    data = ["--data", "digits", *sets("data.batch_size=64"), "--out", str(out)]
    return [*words[what], *data]


def start(words: list[str], *how: str) -> subprocess.Popen[bytes]:
    how = how or ("-m", "secateur")
    return subprocess.Popen([sys.executable, *how, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run(words: list[str]) -> None:
    process = start(words)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()


def killed_writing(words: list[str], chance: random.Random) -> bool:
    """Runs a command that is killed in the middle of some write; whether it ended before that."""
    process = start(words, "-c", DIES_WRITING, str(chance.randint(8, 30)))
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return process.returncode == 0


def killed(words: list[str], out: Path, chance: random.Random) -> bool:
    """Runs a command and kills it shortly after some further epoch or cut; whether it ended before that."""
    log = out / "metrics.jsonl"
    process = start(words)
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


def check_whole(out: Path) -> None:
    """Whatever moment it was, every file that a reader may open is there as a whole."""
    for file in out.glob("checkpoints/[!.]*.safetensors"):
        load(file) if file.stem != "state" else Journal(file)
    if (out / "summary.json").exists():
        assert read_summary(out)["status"] in ("running", "done")
    _count(out / "metrics.jsonl")


def survive(trained: Path, tmp_path: Path, what: str, kills: int, seed: int) -> int:
    """Kills a command again and again, and holds its outcome against that of one left in peace."""
    chance = random.Random(seed)
    whole = tmp_path / f"{what}-whole"
    if not whole.exists():
        run(command(trained, whole, what))
    out = tmp_path / f"{what}-{seed}"
    done, count = False, 0
    while not done and count < kills:
        resume = ["--resume"] if count else []
        words = [*command(trained, out, what), *resume]
        done = killed_writing(words, chance) if count % 2 else killed(words, out, chance)
        count += not done
        check_whole(out)
    if not done:
        run([*command(trained, out, what), "--resume"])
    assert outcome(out) == outcome(whole)
    assert not list(out.rglob("*.part"))
    return count


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "prune"])
def test_killed_runs_end_at_the_same_bits(trained: Path, tmp_path: Path, what: str) -> None:
    total, seed = 0, 0
    while total < FEW_KILLS:
        total += survive(trained, tmp_path, what, kills=FEW_KILLS - total, seed=seed)
        seed += 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "prune"])
def test_fifty_kills(trained: Path, tmp_path: Path, what: str) -> None:
    total, seed = 0, 1
    while total < 25:
        total += survive(trained, tmp_path, what, kills=8, seed=seed)
        seed += 1
