"""Every program in ``examples`` runs, stays small, and prints a network that became smaller."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateur._torchvision  # noqa: F401  before an example imports torchvision
from tests.documents.prepared import images

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 240
QUICK = {
    "detector": ["--images", "16", "--epochs", "4"],
    "distributed": ["--epochs", "3"],
    "fabric_module": ["--epochs", "2"],
    "language_model": ["--epochs", "2"],
    "latency_target": ["--width", "16", "--epochs", "1"],
    "own_loop": ["--epochs", "3"],
    "resnet_adam": ["--epochs", "2", "--cuts", "2", "--model", "secateur:resnet20", "--size", "8"],
    "segmentation": ["--epochs", "1"],
    "timm_network": ["--epochs", "1", "--size", "16"],
    "transfer_learning": ["images", "--epochs", "1", "--size", "32"],
}
SLOW = ("detector", "distributed", "latency_target", "resnet_adam", "segmentation", "timm_network")


def in_processes(name, count):
    """What a program prints that ``torchrun`` starts so many times."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    words = [sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), *QUICK[name]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def rows(tmp_path, monkeypatch, capsys):
    """Runs a program in an empty folder; the rows of its table, as (name, quality, parameters, MACs)."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        if name == "distributed":
            printed = in_processes(name, 2)
        else:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *QUICK[name]])
            with torch.random.fork_rng():
                runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            printed = capsys.readouterr().out
        found = re.findall(r"^(\w[\w ]*?) +([\d.]+)%? +([\d,]+) +([\d,]+)$", printed, re.MULTILINE)
        return [(row[0], float(row[1]), *(int(cell.replace(",", "")) for cell in row[2:])) for row in found]

    return run


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in QUICK],
)
def test_an_example_makes_a_network_smaller(name, rows, tmp_path):
    if name == "transfer_learning":
        images(tmp_path)
    if name == "language_model":
        pytest.importorskip("transformers")
    before, *after = rows(name)
    assert before[0] == "before"
    assert before[1] > 0
    assert after
    for row in after:
        assert row[2] < before[2]
        assert row[3] < 0.75 * before[3]


def test_every_example_is_run_and_small():
    found = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in found] == sorted(QUICK)
    for path in found:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path.name
