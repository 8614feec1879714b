from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

import secateur as sec
from secateur.checkpoint import read_metadata
from secateur.graph import Role
from secateur.report import run_page, write_report
from secateur.training.run_folder import RunError, RunFolder, read_measured, read_metrics, read_summary
from tests.report.conftest import Change
from tests.report.pages import FIGURES, FIGURES_OF_METRICS, Taken, specs


@pytest.fixture(scope="module")
def page(run: Path) -> Taken:
    return Taken(run_page(run))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """What the checkpoint really holds."""
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / "best.safetensors")


def traces(page: Taken, figure: str, variant: str) -> dict[str, Any]:
    """The traces of a figure by their names."""
    return {trace["name"]: trace for trace in specs(page)[figure][variant]["data"]}


def test_widths_are_those_of_the_checkpoint(page: Taken, run: Path) -> None:
    tensors = weights(run)
    (caption,) = (name for name in page.tables if name.startswith("Channel groups"))
    rows = {row[0]: row[1:] for row in page.tables[caption][1:]}
    assert set(rows) == {"stem", "inner", "head (frozen)"}
    assert rows["stem"][:2] == ["12", str(len(tensors["stem.weight"]))]
    assert rows["inner"][:2] == ["16", str(len(tensors["inner.weight"]))]
    assert rows["head (frozen)"][:2] == ["10", str(len(tensors["head.weight"]))]
    bars = traces(page, "widths", "")
    assert bars["after"]["x"] == ["stem", "inner"]
    assert bars["after"]["y"] == [len(tensors["stem.weight"]), len(tensors["inner.weight"])]
    assert bars["after"]["base"] == [-width / 2 for width in bars["after"]["y"]]


def test_costs_of_layers_are_the_closed_form_of_what_is_left(page: Taken, run: Path) -> None:
    tensors = weights(run)
    before, after = (traces(page, "layers", "MACs per example")[name] for name in ("before", "after"))
    # 16 by 16 images, halved by the stem; the head sees one position, and is the smallest by far.
    found = dict(zip(after["y"], after["x"], strict=True))
    for name, positions in (("stem", 64), ("inner", 64), ("outer", 64)):
        assert found[name] == tensors[f"{name}.weight"].numel() * positions, name
    assert found["1 smaller ones"] == tensors["head.weight"].numel()
    summary = read_summary(run)
    assert sum(after["x"]) == summary["pruned"]["macs"]
    assert sum(before["x"]) == summary["baseline"]["macs"]
    params = traces(page, "layers", "parameters")["after"]
    held = sum(tensor.numel() for name, tensor in tensors.items() if not re.search("running|batches", name))
    assert sum(params["x"]) == summary["pruned"]["params"] == held


def test_every_verification_is_shown_as_it_was_logged(page: Taken, run: Path) -> None:
    cuts = [event for event in read_metrics(run) if event["event"] == "cut"]
    rows = page.tables["Cuts and their verification"][1:]
    assert len(cuts) == len(rows) == 2
    for cut, row in zip(cuts, rows, strict=True):
        check = cut["verification"]
        assert row[0] == str(cut["number"])
        assert row[1] == str(sum(map(len, cut["removed"].values())))
        assert row[5] == f"{check['max_error']:.1e}"
        assert row[8] == "yes"
    words = " ".join(page.text)
    assert "Every cut is verified" in words
    assert "3 inputs after each cut, evaluation and training mode, float64" in words
    assert "Not checked" not in words


def test_what_was_not_checked_is_named(changed: Change) -> None:
    def leave_out(text: str) -> str:
        return text.replace('"not_checked": []', '"not_checked": ["training mode (it fails)"]', 1)

    text = Taken(run_page(changed("metrics.jsonl", leave_out))).text
    words = " ".join(" ".join(text).split())
    assert "Not checked: training mode (it fails)" in words


def test_a_cut_that_is_not_verified_is_not_hidden(changed: Change) -> None:
    def fail(text: str) -> str:
        return text.replace('"problem": null', '"problem": "another shape"', 1)

    page = Taken(run_page(changed("metrics.jsonl", fail)))
    assert [row[8] for row in page.tables["Cuts and their verification"][1:]] == ["NO", "yes"]
    words = " ".join(page.text)
    assert "Not every cut is verified" in words
    assert "Every cut is verified" not in words


def test_scores_are_split_by_the_channels_that_the_checkpoint_lost(page: Taken, run: Path) -> None:
    measured = read_measured(run)["scores"]["scores"]
    raw = traces(page, "scores", "raw, linear scale")
    stays, goes = (
        {name: sorted(_of(raw[which], name)) for name in measured}
        for which in ("stays", "is removed in this run")
    )
    alive = {name: list(range(len(scores))) for name, scores in measured.items()}
    for entry in read_metadata(run / "checkpoints" / "best.safetensors").history:
        assert isinstance(entry, dict)
        for name, channels in entry["removed"].items():  # type: ignore[union-attr]
            alive[name] = [channel for at, channel in enumerate(alive[name]) if at not in channels]
    for name, scores in measured.items():
        expected = sorted(float(f"{scores[channel]:.4g}") for channel in alive[name])
        assert stays[name] == pytest.approx(expected, rel=1e-3)
        assert len(stays[name]) + len(goes[name]) == len(scores)


def _of(trace: dict[str, list[object]], group: str) -> list[float]:
    return [x for x, y in zip(trace["x"], trace["y"], strict=True) if y == group]  # type: ignore[misc]


def test_couplings_and_reasons_are_those_of_the_graph(page: Taken, run: Path) -> None:
    model = sec.load(run / "checkpoints" / "best.safetensors", model=_small(run))
    graph = sec.trace(model, torch.zeros(2, 3, 16, 16))
    rows = {row[0]: row[1:] for row in page.tables["Layers that each group couples"][1:]}
    for group in graph.groups:
        writers = [member.module for member in group.roles(Role.PRODUCER)]
        assert rows[group.name][0] == ", ".join(dict.fromkeys(writers))
    assert rows["stem"][0] == "stem, outer"
    assert rows["stem"][2] == "inner, head"
    ((name, channels, reason),) = page.tables["Frozen groups, with reasons"][1:]
    assert (name, channels, reason) == ("head", "10", graph["head"].reason)


def _small(run: Path) -> torch.nn.Module:
    names: dict[str, type[torch.nn.Module]] = {}
    exec((run.parent / "net.py").read_text(), names)
    return names["Small"]()


def test_the_course_is_that_of_the_run(page: Taken, run: Path) -> None:
    epochs = [event for event in read_metrics(run) if event["event"] == "epoch"]
    accuracy, loss = specs(page)["epochs"][""]["data"]
    assert accuracy["y"] == [epoch["metric"] for epoch in epochs]
    assert loss["y"] == [epoch["loss"] for epoch in epochs]
    course = specs(page)["course"]["MACs per example"]["data"]
    cuts = [event["cost"]["macs"] for event in read_metrics(run) if event["event"] == "cut"]
    assert course[0]["x"] == [cuts[epoch["phase"] == "after the last cut"] for epoch in epochs]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 0, 1, 2]
    rows = page.tables["Epochs"][1:]
    assert [row[2].split()[0] for row in rows] == ["before", "1", "before", "1", "2"]
    assert [row[2].endswith("(kept)") for row in rows] == [epoch["kept"] for epoch in epochs]
    training = read_summary(run)["training"]
    assert training["start"]["top1"] == epochs[2]["metric"]
    kept = page.tables["What was kept"]
    assert [row[1] for row in kept[1:3]] == [f"{training[side]['top1']:.2%}" for side in ("start", "kept")]
    summary = read_summary(run)
    assert course[1]["y"] == [summary["baseline"]["top1"], summary["pruned"]["top1"]]


def test_answers_are_compared_by_class(page: Taken, run: Path) -> None:
    answers = json.loads((run / "answers.json").read_text())
    rows = {row[0]: row for row in page.tables["Accuracy by class"][1:]}
    assert set(rows) == {str(digit) for digit in range(10)}
    for entry in answers["classes"]:
        assert rows[entry["name"]][1:4] == [
            str(entry["examples"]),
            f"{entry['before']:.2%}",
            f"{entry['after']:.2%}",
        ]
    summary = read_summary(run)
    for side, figures in (("before", "baseline"), ("after", "pruned")):
        right = sum(entry["examples"] * entry[side] for entry in answers["classes"])
        assert right / 450 == pytest.approx(summary[figures]["top1"])
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == len(answers["images"])
    assert all(image.startswith("data:image/jpeg;base64,") for image in images)


def test_times_are_of_every_module_that_ran(page: Taken, run: Path) -> None:
    rows = {row[0]: row for row in page.tables["Layers before and after"][2:]}
    assert list(rows) == ["(the network itself)", "stem", "norm", "inner", "outer", "head"]
    for row in rows.values():
        assert re.fullmatch(r"[\d.]+ ms", row[2])
        assert re.fullmatch(r"[\d.]+ ms", row[3])
    assert rows["norm"][1] == "BatchNorm2d"


def test_every_figure_is_valid_has_a_place_a_label_and_a_table(page: Taken) -> None:
    found = specs(page)
    assert set(found) == set(FIGURES)
    places = [value for _, name, value in page.attributes if name == "data-drawing"]
    assert sorted(places) == sorted(found)
    for variants in found.values():
        for spec in variants.values():
            go.Figure(spec)  # refuses what plotly does not know
            for trace in spec["data"]:
                names = (trace.get("meta") or {}).get("names")
                names = trace[names] if isinstance(names, str) else names
                assert names is None or len(names) == len(trace["x"]) == len(trace["y"])
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    assert len(labels) >= len(found)
    assert len(re.findall("The numbers are in a table", " ".join(page.text))) == len(found)
    assert len(page.tables) >= len(found)


def test_the_page_is_well_formed_and_fetches_nothing(page: Taken, run: Path) -> None:
    assert all(value == "data:," or value.startswith("data:image/jpeg;base64,") for value in page.fetched)
    assert [words for level, words in page.headings if level == 1] != []
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert max(Counter(page.ids).values()) == 1
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links
    assert all(link[0] == "#" and link[1:] in page.ids for link in links)
    assert len(run_page(run).encode()) < 6e6


def test_only_the_two_scripts_that_the_policy_names_run(page: Taken) -> None:
    import base64
    import hashlib

    (policy,) = (
        value for tag, name, value in page.attributes if name == "content" and "default-src" in value
    )
    assert "default-src 'none'" in policy
    assert "http" not in policy
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    assert len(hashes) == 2
    assert re.findall("'sha256-([^']+)'", policy) == hashes
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;${7*7}{{7*7}}%{x}<b>b</b>"


def test_hostile_names_stay_names(changed: Change) -> None:
    quoted = json.dumps(HOSTILE)[1:-1]
    names = ("network.json", "measured.json", "summary.json", "metrics.jsonl")
    for name in names:
        copy = changed(name, lambda text: re.sub(r"\binner\b", lambda _: quoted, text))
    changed(
        "summary.json",
        lambda text: json.dumps(
            {
                **json.loads(text),
                "model": HOSTILE,
                "command_line": HOSTILE,
                "classes": [HOSTILE],
                "skipped": [HOSTILE],
            }
        ),
    )
    changed("answers.json", lambda text: re.sub(r'"image \d+"', lambda _: json.dumps(HOSTILE), text))
    changed("config.toml", lambda text: text + f"\n[more]\n{json.dumps(HOSTILE)} = {json.dumps(HOSTILE)}\n")
    text = run_page(copy)
    page = Taken(text)
    assert len(page.scripts) == 2
    assert all(value == "data:," or value.startswith("data:image/jpeg;base64,") for value in page.fetched)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert {name for tag, name, _ in page.attributes if tag == "img"} <= {"src", "alt", "loading"}
    assert page.headings[0][1] == HOSTILE
    (caption,) = (name for name in page.tables if name.startswith("Channel groups"))
    assert HOSTILE in [row[0] for row in page.tables[caption]]
    assert HOSTILE in specs(page)["widths"][""]["data"][0]["x"]
    for variants in specs(page).values():
        for spec in variants.values():
            _check_words(spec)


# What plotly renders as text: there markup must have been made harmless.
WORDS = {"customdata", "ticktext", "name", "text", "hovertemplate"}
OURS = re.compile(r"</?(b|br|extra)>")


def _check_words(value: object, key: str = "") -> None:
    if isinstance(value, dict):
        for name, one in value.items():
            _check_words(one, name)
    elif isinstance(value, list):
        for one in value:
            _check_words(one, key)
    elif isinstance(value, str) and key in WORDS:
        assert not re.search(r"<(?!/?(b|br|extra)>)", value), (key, value)
        if key == "hovertemplate":
            assert "alert" not in value


def test_an_old_run_still_has_a_page_that_says_what_is_missing(changed: Change) -> None:
    copy = changed("config.toml", lambda text: text)
    for name in ("network.json", "measured.json", "config.toml"):
        (copy / name).unlink()
    page = Taken(run_page(copy))
    words = " ".join(" ".join(page.text).split())
    for name in ("network.json", "measured.json", "config.toml"):
        assert f"the run holds no {name}" in words
    assert set(specs(page)) == set(FIGURES_OF_METRICS)
    assert "÷" in words  # what the run came to is known all the same


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("network.json", "{"),
        ("network.json", '{"format": 99}'),
        ("network.json", '{"format": 1, "groups": 3}'),
        ("network.json", "[]"),
        ("measured.json", '{"scores": {"scores": {"a": "b"}}}'),
        ("metrics.jsonl", '{"event": "epoch"}\n'),
        ("metrics.jsonl", "3\n"),
        ("config.toml", "= 3"),
    ],
)
def test_damaged_files_are_named_and_the_rest_is_shown(changed: Change, name: str, text: str) -> None:
    page = Taken(run_page(changed(name, lambda _: text)))
    assert f"{name} is damaged" in " ".join(page.text)
    assert len(specs(page)) >= 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"status": "done", "path": 3}', '{"status": "done", "latency": 3}']
)
def test_a_damaged_summary_is_one_clear_line(changed: Change, text: str) -> None:
    with pytest.raises(RunError, match="report"):
        run_page(changed("summary.json", lambda _: text))


def test_of_a_search_the_cuts_of_the_kept_network_are_told(changed: Change) -> None:
    def point(number: int, share: float, held: bool) -> dict[str, object]:
        return {"number": number, "share": share, "held": held, "validation_top1": 0.9, "cost": None}

    def searched(*path: dict[str, object]) -> str:
        copy = changed("summary.json", lambda text: json.dumps({**json.loads(text), "path": path}))
        return " ".join(" ".join(Taken(run_page(copy)).text).split())

    removed = sum(
        len(channels)
        for event in read_metrics(changed("summary.json", str))
        if event["event"] == "cut"
        for channels in event["removed"].values()
    )
    assert "Of 1 networks that were tried, none has" in searched(point(0, 1, True), point(1, 0.5, False))
    found = searched(point(0, 1, True), point(1, 0.5, True))
    assert f"{removed} channels were removed in 2 cuts" in found
    assert "Of 1 networks that were tried, this is the smallest" in found


def test_a_run_that_failed_says_so(changed: Change) -> None:
    copy = changed(
        "summary.json", lambda _: '{"status": "failed", "error": "the loss is <nan>", "command": "prune"}'
    )
    words = " ".join(Taken(run_page(copy)).text)
    assert "failed" in words
    assert "the loss is <nan>" in words


def test_the_page_holds_the_command_and_the_one_that_repeats_the_run(page: Taken, run: Path) -> None:
    words = "".join(page.text)
    assert "secateur prune net.py:Small --macs 0.5" in words
    assert f"secateur prune --recipe {run}/config.toml --out {run}-again" in words


def test_a_page_in_a_run_folder_belongs_to_the_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.configure({"command": "train"})
    write_report(tmp_path, tmp_path / "small.html")
    with RunFolder(tmp_path, overwrite=True):
        assert not (tmp_path / "small.html").exists()


def test_the_page_is_written_as_a_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    file = write_report(run, tmp_path / "page.html")
    assert file.read_text().startswith("<!doctype html>")
    with pytest.raises(RunError):
        write_report(tmp_path, tmp_path / "other.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
