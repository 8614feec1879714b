from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import render, results
from benchmarks.results import Machine, Result
from benchmarks.tables import Table, spread


def test_documents_are_what_render_writes(capsys):
    assert render.check() == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in results.all_results())


def test_there_are_at_most_twenty_claims():
    claims = results.ROOT.joinpath("BENCHMARKS.md").read_text().partition("<!-- end of claims -->")[0]
    assert 1 <= claims.count("\n| [") <= 20


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of what documents are made of, in a folder that git does not know."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for path in results.RESULTS.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "BENCHMARKS.md").write_bytes((results.ROOT / "BENCHMARKS.md").read_bytes())
    for module in (render, results):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", folder)
    return tmp_path


def test_an_edited_page_a_missing_one_and_one_too_many_are_found(project, capsys):
    assert render.render() == 0
    assert render.check() == 0
    page = project / "docs/benchmarks/accuracy.md"
    page.write_text(page.read_text().replace("±", "+", 1))
    (project / "docs/benchmarks/watch.md").unlink()
    (project / "docs/benchmarks/other.md").write_text("# 1.0\n")
    claims = project / "BENCHMARKS.md"
    claims.write_text(re.sub(r"\d+\.\d+% \|", "12.34% |", claims.read_text(), count=1))
    assert render.check() == 1
    differing = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "is not what" in line]
    names = ("docs/benchmarks/other.md", "docs/benchmarks/accuracy.md", "docs/benchmarks/watch.md")
    assert sorted(differing) == sorted([*names, "BENCHMARKS.md"])


def test_text_outside_the_markers_stays(project):
    claims = project / "BENCHMARKS.md"
    claims.write_text(claims.read_text().replace("# Benchmarks", "# Measured by hand", 1))
    render.render()
    assert claims.read_text().startswith("# Measured by hand")


def test_where_git_is_missing_ages_are_unknown_and_nothing_else_differs(project):
    render.render()
    page = project / "docs/benchmarks/accuracy.md"
    assert "an unknown number of commits of `src` before" in page.read_text()
    page.write_text(page.read_text().replace("an unknown number of commits", "7 commits"))
    assert render.differences() == []


def test_missing_markers_are_named():
    with pytest.raises(SystemExit, match="claims: written by"):
        render.between("no markers", "claims", "text")


def test_a_claim_about_a_cell_that_is_not_there_is_named(project, tmp_path, monkeypatch):
    wrong = tmp_path / "claims.toml"
    wrong.write_text('[[claim]]\nclaim = "C"\nresult = "demo"\ncolumn = "then"\nours = {quantity = "file"}\n')
    monkeypatch.setattr(render, "DEFINITIONS", wrong)
    with pytest.raises(SystemExit, match=r"claims.toml, 'C': demo: no column \['then'\]"):
        render.documents()


def test_results_are_stored_as_they_are(tmp_path):
    result = Result(
        title="One",
        command="python -m benchmarks run planning",
        commit="0" * 40,
        date="2026-11-29",
        machine=Machine.this(),
        seeds=(0,),
        rows=[{"network": "vgg16", "groups": 15, "macs": 1 / 3, "macs_and_params": 0.5}],
    )
    results.write(tmp_path / "planning.json", result)
    assert results.read(tmp_path / "planning.json") == result
    assert json.loads((tmp_path / "planning.json").read_text())["rows"][0]["macs"] == 1 / 3
    assert render.table_of("planning", result).cell({"network": "vgg16"}, "half the MACs") == "0.3 s"


def test_a_cell_is_found_by_others_of_its_row():
    table = Table(
        ("way", "share", "kept"), [("ours", "50%", "9"), ("ours", "25%", "8"), ("peer", "50%", "5")]
    )
    assert table.cell({"way": "ours", "share": "25%"}, "kept") == "8"
    with pytest.raises(LookupError, match="2 rows"):
        table.cell({"way": "ours"}, "kept")
    assert str(table).splitlines()[2] == "| ours | 50% | 9 |"


def test_a_mean_has_its_deviation_where_there_are_several():
    assert (spread([2.0]), spread([1.0, 3.0], 2), spread([])) == ("2.0", "2.00 ± 1.41", "–")


def test_pages_name_no_folder_of_one_machine():
    files = [*results.RESULTS.glob("*.json"), *(results.ROOT / "benchmarks").rglob("*.py")]
    assert [path.name for path in files if "/work/" in Path(path).read_text(encoding="utf-8")] == []
