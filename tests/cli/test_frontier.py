from __future__ import annotations

from pathlib import Path

import secateur as sec
from secateur.training.run_folder import read_measured, read_metrics, read_summary
from tests.cli.conftest import Command


def test_a_frontier_is_computed_and_pruning_goes_on_from_a_point(
    secateur: Command, trained: Path, tmp_path: Path
) -> None:
    out, small = tmp_path / "frontier", tmp_path / "small"
    data = ("--data", "digits", "--set", "latency_seconds=0")
    result = secateur("frontier", trained, *data, "--points", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "90% of macs" in result.stdout
    assert "10% of macs" in result.stdout
    assert "top-1 on 201 validation images" in result.stdout
    summary = read_summary(out)
    points = summary["frontier"]["points"]
    assert [point["number"] for point in points] == [1, 2]
    assert all(point["verified"] and point["examples"] == 201 for point in points)
    assert set(read_measured(out)) == {"network", "scores", "curves"}
    page = (out / "report.html").read_text()
    assert "Points of the frontier" in page
    assert "Missing in this report" not in page
    assert "a share of the MACs" in page
    assert f"secateur prune {trained} --data digits --measured {out} --point N" in page

    how = ("--measured", out, "--point", 2, "--no-finetune")
    result = secateur("prune", trained, *data, *how, "--out", small)
    assert result.exit_code == 0, result.output
    assert read_summary(small)["pruned"]["macs"] == points[1]["cost"]["macs"]
    cuts = [
        next(event["removed"] for event in reversed(read_metrics(run)) if event["event"] == "cut")
        for run in (out, small)
    ]
    assert cuts[0] == cuts[1]
    assert sec.load(small / "checkpoints" / "best.safetensors") is not None

    # Nothing is measured again for other points.
    again = tmp_path / "again"
    result = secateur("frontier", trained, *data, "--points", 2, "--measured", out, "--out", again)
    assert result.exit_code == 0, result.output
    assert read_summary(again)["frontier"] == summary["frontier"]
    assert "measuring widths" not in result.stdout


def test_wrong_words_are_refused_by_their_options(secateur: Command, trained: Path, tmp_path: Path) -> None:
    data = ("--data", "digits", "--out", tmp_path / "out")
    refused = {
        ("frontier", trained, "--by", "size"): "--by",
        ("frontier", trained, "--points", 0): "--points",
        ("frontier", trained, "--set", "finetune.epochs=3"): "finetune.epochs=3",
        ("prune", trained, "--point", 2): "--measured RUN",
        ("prune", trained, "--point", 2, "--measured", trained): "run secateur frontier first",
        ("prune", trained, "--point", 2, "--measured", trained, "--macs", 0.5): "exclude each other",
    }
    for words, expected in refused.items():
        result = secateur(*words, *data)
        assert result.exit_code == 2, result.output
        assert expected in result.output
    assert not (tmp_path / "out").exists()
