"""``--depth`` on the command line: settings, runs, tables and reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from secateur.cli.job_settings import prune_job
from secateur.errors import UsageError

Command = Callable[..., Result]

NETWORK = """
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.conv1 = nn.Conv2d(6, hidden, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, 6, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(x)))))

def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), *[Block(5) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("code") / "network.py"
    file.write_text(NETWORK, encoding="utf-8")
    return f"{file}:network"


def test_the_option_is_a_setting_of_the_recipe() -> None:
    options = {"network.source": ("RUN", "x"), "data.source": ("--data", "digits"), "out": ("--out", "y")}
    options |= {"budget.macs": ("--macs", 0.5)}
    job = prune_job({**options, "widths.depth": ("--depth", "only")}, None, ())
    assert job.recipe.widths.depth == "only"
    assert prune_job(options, None, ("widths.depth=auto",)).recipe.widths.depth == "auto"
    assert prune_job({**options, "widths.depth": ("--depth", None)}, None, ()).recipe.widths.depth == "off"
    with pytest.raises(UsageError, match="--depth only and --set widths.depth=auto give the same setting"):
        prune_job({**options, "widths.depth": ("--depth", "only")}, None, ("widths.depth=auto",))


def test_inspect_lists_branches(secateur: Command, source: str) -> None:
    result = secateur("inspect", source, "--input", "3,8,8")
    assert result.exit_code == 0, result.output
    assert "residual branches" in result.stdout
    found = json.loads(secateur("inspect", source, "--input", "3,8,8", "--json").stdout)["branches"]
    assert [branch["name"] for branch in found] == ["1", "2", "3", "4"]
    assert all(branch["frozen"] is None and branch["part_of"] is None for branch in found)
    assert all(0.2 < branch["macs"] < 0.25 for branch in found)


def test_a_run_removes_branches_and_says_so(secateur: Command, source: str, tmp_path: Path) -> None:
    words = (
        "--data",
        "digits",
        "--set",
        "network.size=8",
        "--macs",
        0.6,
        "--depth",
        "only",
        "--set",
        "finetune.epochs=1",
    )
    result = secateur("prune", source, "--weights", "none", *words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    removed = summary["removed_branches"]
    assert len(removed) == 2
    assert f"removed residual branches: {', '.join(removed)}" in result.stdout
    assert summary["pruned"]["macs"] <= 0.6 * summary["baseline"]["macs"]
    network = json.loads((tmp_path / "run" / "network.json").read_text())
    assert [one["name"] for one in network["branches"] if one["removed_by"] == 1] == removed
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("removed by cut 1") == 2
    assert "and 2 residual branches were removed in 1 cut" in page


def test_a_run_without_data_takes_a_criterion_that_scores_branches(
    secateur: Command, source: str, tmp_path: Path
) -> None:
    words = (
        "prune",
        source,
        "--weights",
        "none",
        "--set",
        "network.size=8",
        "--macs",
        0.6,
        "--depth",
        "only",
    )
    refused = secateur(*words, "--out", tmp_path / "refused")
    assert refused.exit_code != 0
    assert "'magnitude' does not score residual branches" in refused.output.replace("\n", " ")
    result = secateur(*words, "--set", "criterion=random", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["removed_branches"]) == 2
