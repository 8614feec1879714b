from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from secateur.cli import app

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def secateur() -> Command:
    """Runs the command line in this process."""
    runner = CliRunner()

    def run(*words: object) -> Result:
        return runner.invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def trained(secateur: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the network for digits, trained for an epoch."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    words = ("--data", "digits", "--epochs", 1, "--lr", 0.05, "--batch-size", 64)
    result = secateur("train", "--model", "secateur:digits", *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "epoch 1/1" in result.stdout
    assert "top-1 accuracy" in result.stdout
    return out
