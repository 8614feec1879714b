from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import secateur.report
from secateur.training.run_folder import RunError

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def pruned(secateur: Command, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    result = secateur("prune", trained, "--macs", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"report: {out / 'report.html'}" in result.stdout
    return out


def test_pruning_leaves_a_page_with_scores_though_nothing_was_trained(pruned: Path) -> None:
    page = (pruned / "report.html").read_text()
    assert "Scores of the channels" in page
    assert "Costs of the layers" in page


def test_the_page_can_be_made_again_and_elsewhere(secateur: Command, pruned: Path, tmp_path: Path) -> None:
    (pruned / "report.html").unlink()
    assert secateur("report", pruned).stdout.strip() == str(pruned / "report.html")
    result = secateur("report", pruned, "--out", tmp_path / "page.html", "--json")
    assert json.loads(result.stdout) == {"page": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").read_text() == (pruned / "report.html").read_text()


def test_a_run_that_only_trained_has_a_page(secateur: Command, trained: Path, tmp_path: Path) -> None:
    result = secateur("report", trained, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "All epochs" in page
    assert "Epoch by epoch" in page  # from the network before training to the one epoch
    assert "Not in this report" not in page


@pytest.mark.parametrize("words", [("absent",), (".",)])
def test_no_run_is_one_line(secateur: Command, words: tuple[str, ...]) -> None:
    result = secateur("report", *words)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "is it a run folder?" in result.stderr


def test_a_page_in_no_folder_is_wrong_usage(secateur: Command, pruned: Path, tmp_path: Path) -> None:
    result = secateur("report", pruned, "--out", tmp_path / "absent" / "page.html")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


def test_a_run_does_not_hang_on_its_page(
    secateur: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Path) -> Path:
        raise RunError("no\nroom")

    monkeypatch.setattr(secateur_report, "write_report", fail)
    result = secateur("prune", trained, "--macs", 0.5, "--out", tmp_path / "small")
    assert result.exit_code == 0
    assert "warning: there is no report on this run: no room\n" in result.stdout
    assert "verified:" in result.stdout


secateur_report = secateur.report
