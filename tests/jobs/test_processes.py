"""One run in several processes: it comes to what one process comes to, and it ends well or badly as one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from secateur.cli import app
from secateur.criteria import Scores
from secateur.jobs.settings import TrainJob
from secateur.jobs.train import train
from secateur.training.run_folder import read_measured, read_metrics, read_summary

LIMIT = 300.0  # seconds that no command of these tests outlives


def environment(threads: int) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(threads)}


# What one process does, several do within the order of additions; a few small steps keep that small.
def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def plain(between: int, after: int, rate: str = "0.001") -> list[str]:
    """Two cuts, and so many epochs after the first and the second."""
    rates = [f"{phase}.optimizer.learning_rate={rate}" for phase in ("between", "finetune")]
    epochs = [f"between.epochs={between}", f"finetune.epochs={after}"]
    return ["--recipe", "plain", "--macs", "0.4", *sets("steps=2", *epochs, *rates)]


STEPS = plain(1, 1)
LONG = plain(2, 9)


def words(network: Path, out: Path, how: list[str], batch: int = 100) -> list[str]:
    same = sets(f"data.batch_size={batch}", "device.precision=float32", "latency_seconds=0")
    code = network.parent / "plain.py"
    builder = ["--builder", f"{code}:plain"] if code.is_file() else []
    return ["prune", str(network), *how, "--data", "digits", *same, *builder, "--out", str(out)]


def torchrun(count: int) -> list[str]:
    return [*("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"), "-m", "secateur"]


def start(arguments: list[str], launcher: list[str] | None = None, threads: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(launcher or ["-m", "secateur"]), *arguments],
        env=environment(threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says, and its complaints; it is killed if it takes too long."""
    try:
        return process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def run(arguments: list[str], launcher: list[str] | None = None, threads: int = 1) -> str:
    process = start(arguments, launcher, threads)
    said, complaints = finish(process)
    assert process.returncode == 0, complaints
    return said


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a command has started, by rank."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s*(\d+)", (entry / "status").read_text(), re.MULTILINE)
            words = (entry / "cmdline").read_text()
        except OSError:
            continue  # gone meanwhile
        if parent is not None and int(parent[1]) == process.pid and "spawn_main" in words:
            found.append(int(entry.name))
    return sorted(found)  # they are started one after the other


@contextmanager
def under_way(arguments: list[str], out: Path, event: str = '"epoch"') -> Iterator[subprocess.Popen[str]]:
    """A command that has come to its first epoch, or to another event that its log did not hold before."""
    log, deadline = out / "metrics.jsonl", time.monotonic() + LIMIT

    def seen() -> int:
        return log.read_text().count(event) if log.is_file() else 0

    before = seen()
    process = start(arguments)
    try:
        while seen() <= before:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def cuts(out: Path) -> list[Any]:
    return [record["removed"] for record in read_metrics(out) if record["event"] == "cut"]


def scores(out: Path) -> Scores:
    return Scores.from_dict(read_measured(out)["scores"])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "last.safetensors")


def check_like_one(out: Path, alone: Path, apart: float = 3e-5) -> None:
    assert cuts(out) == cuts(alone)
    for name, expected in scores(alone).items():
        torch.testing.assert_close(scores(out)[name], expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    torch.testing.assert_close(weights(out), weights(alone), rtol=1e-4, atol=apart)
    one, several = read_summary(alone), read_summary(out)
    assert several["environment"]["processes"] > 1
    assert several["baseline"]["top1"] == one["baseline"]["top1"]


WITHOUT_BATCH_NORM = """
from torch import nn


def plain(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, num_classes),
    )
"""
"""On CPUs, each process normalises by the statistics of its part of a batch."""


@pytest.fixture(scope="module")
def without_batch_norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a network that several processes train as one does."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.py").write_text(WITHOUT_BATCH_NORM)
    train(
        TrainJob(
            network={"source": f"{folder / 'plain.py'}:plain", "size": 8},
            data={"source": "digits", "batch_size": 32},
            out=folder / "run",
            latency_seconds=0,
            fit={"epochs": 3, "optimizer": {"learning_rate": 0.05}},
        )
    )
    return folder / "run"


@pytest.fixture(scope="module")
def alone(without_batch_norm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the network."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = CliRunner().invoke(app, words(without_batch_norm, out, STEPS))
    assert result.exit_code == 0, result.output
    return out


def test_two_processes_prune_like_one(without_batch_norm: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run([*words(without_batch_norm, out, STEPS), "--devices", "2", "--json"])
    assert json.loads(said) == read_summary(out)
    check_like_one(out, alone)
    assert sorted(path.name for path in out.iterdir()) == [
        *(".lock", "checkpoints", "config.toml", "measured.json", "metrics.jsonl"),
        *("network.json", "report.html", "summary.json"),
    ]


@pytest.mark.slow
def test_a_lost_process_ends_the_run_with_one_line_and_it_can_be_gone_on_with(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [*words(trained, out, plain(2, 2)), "--devices", "2"]
    with under_way(arguments, out) as process:
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        began = time.monotonic()
        _, complaints = finish(process)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert complaints.count("\n") == 1
    assert "process 1 of this run was killed (SIGKILL)" in complaints
    assert "--resume continues" in complaints
    assert read_summary(out)["status"] == "failed"
    before = len(read_metrics(out))
    assert "continues after" in run([*arguments, "--resume"])
    assert len(read_metrics(out)) > before
    assert read_summary(out)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", "0.001"), ("adamw", "0.0003")])
def test_three_processes_of_torchrun_prune_like_one_with_all_that_recovers(
    without_batch_norm: Path, tmp_path: Path, optimizer: str, rate: str
) -> None:
    how = [*plain(1, 1, rate), *sets("allocation=curves", "reconstruct=true", "reconstruct_batches=2")]
    how += sets("distillation.weight=0.5", "finetune.ema_decay=0.9")
    how += sets(*(f"{phase}.optimizer.name={optimizer}" for phase in ("between", "finetune")))
    run(words(without_batch_norm, tmp_path / "alone", how))
    run(words(without_batch_norm, tmp_path / "threads", how), threads=2)
    run(words(without_batch_norm, tmp_path / "run", how), torchrun(3))
    # Training magnifies the order of additions, AdamW most: the yardstick is one process with two threads,
    # in which nothing but that order differs either.
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "threads")
    order = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert order < 0.01
    check_like_one(tmp_path / "run", tmp_path / "alone", 3 * order)


@pytest.mark.slow
def test_batches_with_fewer_images_than_processes(without_batch_norm: Path, tmp_path: Path) -> None:
    how = ["--macs", "0.6", *sets("steps=1", "finetune.epochs=0", "scoring_batches=3")]
    for count in (1, 3):
        run([*words(without_batch_norm, tmp_path / f"{count}", how, batch=2), "--devices", f"{count}"])
    check_like_one(tmp_path / "3", tmp_path / "1")


@pytest.mark.slow
def test_runs_that_are_interrupted_or_lose_their_first_process_end_at_the_same_bits(
    trained: Path, tmp_path: Path
) -> None:
    how = [*LONG, *sets("reconstruct=true", "reconstruct_batches=2", "finetune.ema_decay=0.9")]

    def arguments(name: str) -> list[str]:
        return [*words(trained, tmp_path / name, how), "--devices", "2"]

    run(arguments("whole"))
    out = tmp_path / "run"
    with under_way(arguments("run"), out) as process:
        os.kill(ranks_of(process)[0], signal.SIGKILL)
        _, complaints = finish(process)
    assert (process.returncode, complaints.count("\n")) == (1, 1)
    with under_way([*arguments("run"), "--resume"], out, "goes on") as process:
        os.kill(ranks_of(process)[1], signal.SIGTERM)  # whichever is told, all stop
        _, complaints = finish(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert complaints.startswith("stopped by SIGTERM")
    assert complaints.count("\n") == 1
    with under_way([*arguments("run"), "--resume"], out, "goes on") as process:
        process.send_signal(signal.SIGINT)
        _, complaints = finish(process)
    assert process.returncode == 128 + signal.SIGINT
    assert complaints.startswith("stopped by Ctrl-C")
    assert complaints.count("\n") == 1
    with under_way([*arguments("run"), "--resume"], out, "goes on") as process:
        children = ranks_of(process)
        process.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    run([*arguments("run"), "--resume"])
    assert outcome(out) == outcome(tmp_path / "whole")


def outcome(out: Path) -> bytes:
    return (out / "checkpoints" / "best.safetensors").read_bytes()


@pytest.mark.slow
def test_what_one_process_cannot_read_is_told_once(trained: Path, tmp_path: Path) -> None:
    missing = [
        *words(trained, tmp_path / "run", STEPS),
        "--devices",
        "2",
        "--data",
        str(tmp_path / "nowhere"),
    ]
    process = start(missing)
    _, complaints = finish(process)
    assert (process.returncode, complaints.count("\n")) == (2, 1)
    assert "nowhere" in complaints
    out = tmp_path / "locked"
    with under_way(words(trained, out, plain(2, 1000)), out):
        process = start([*words(trained, out, LONG), "--devices", "2", "--overwrite"])
        _, complaints = finish(process)
        assert (process.returncode, complaints.count("\n")) == (1, 1)
        assert "in use by another process" in complaints
    impossible = [*words(trained, tmp_path / "least", STEPS), "--devices", "2", "--macs", "5"]
    process = start(impossible)
    _, complaints = finish(process)
    assert (process.returncode, complaints.count("\n")) == (1, 1)
    assert "least" in complaints


@pytest.mark.slow
def test_oracle_and_evaluation_of_several_processes_are_those_of_one(trained: Path, tmp_path: Path) -> None:
    found = {}
    for count in ("1", "3"):
        out = tmp_path / f"{count}.json"
        measured = ["oracle", str(trained), "--data", "digits", "--examples", "40", "--batch-size", "20"]
        run([*measured, "--criteria", "taylor,magnitude", "--out", str(out), "--devices", count])
        judged = run(["evaluate", str(trained), "--data", "digits", "--devices", count, "--json"])
        found[count] = json.loads(out.read_text()), json.loads(judged)
    (one, judged_one), (three, judged_three) = found["1"], found["3"]
    assert three["changes"] == one["changes"]
    assert judged_three["top1"] == judged_one["top1"]
    assert judged_three["examples"] == judged_one["examples"] == 450
    assert judged_three["loss"] == pytest.approx(judged_one["loss"], rel=1e-6)
