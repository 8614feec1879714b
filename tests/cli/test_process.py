"""What only a process of its own can show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import secateur as sec

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from secateur.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'scipy', 'pydantic', 'lightning_fabric', 'sklearn'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert found.stderr == "[]\n"
    assert "inspect" in found.stdout


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), pytest.param(signal.SIGTERM, "SIGTERM", marks=pytest.mark.slow)],
)
def test_an_interrupted_run_stays_readable(tmp_path: Path, number: int, name: str) -> None:
    out = tmp_path / "run"
    command = ["-m", "secateur", "train", "--model", "secateur:digits", "--data", "digits"]
    process = subprocess.Popen(
        [sys.executable, *command, "--epochs", "1000", "--out", str(out)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and '"epoch"' in metrics.read_text():
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1
    assert f"stopped by {name}" in errors
    last = out / "checkpoints" / "last.safetensors"
    assert str(last) in errors
    assert sec.load(last).features[0].out_channels == 32
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
    }
