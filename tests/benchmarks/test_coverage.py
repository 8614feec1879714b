"""The list of networks of other libraries, and the page that is made of its results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec
from benchmarks import coverage, results, zoo
from benchmarks.results import Machine, Result

LIST = results.ROOT / "benchmarks" / "families.toml"


def test_every_network_of_the_list_is_one_that_can_be_named():
    entries = zoo.listed(LIST)
    names = [(entry["source"], entry["model"]) for entry in entries]
    assert len(set(names)) == len(names) >= 60
    assert {source for source, _ in names} == {"transformers", "ultralytics", "smp", "diffusers"}
    assert all(("spec" in entry) != ("architecture" in entry) for entry in entries)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.words(tokens)).relu())


def test_covered_counts_dimensions_by_the_size_of_their_weights():
    model, tokens = Net(), torch.randint(0, 10, (2, 4))
    assert zoo.covered(model, sec.trace(model, tokens)) == 1.0
    # Frozen are the columns of `first` (6 x 8) and its rows, and the columns of `last` (5 x 6).
    frozen = sec.trace(model, tokens, ignore=["first"])
    assert zoo.covered(model, frozen) == 0.0
    assert zoo.covered(model, sec.trace(model, tokens, ignore=["words"])) == round(
        (48 + 30) / (48 * 2 + 30), 3
    )


def test_one_network_of_the_list_passes():
    pytest.importorskip("segmentation_models_pytorch")
    entry = next(entry for entry in zoo.listed(LIST) if entry["model"] == "Linknet/resnet18")
    row = zoo.apart(entry, 300)
    assert coverage.passes(row), row
    assert row["covered"] == 1.0


def result(*rows: dict[str, object]) -> Result:
    machine = Machine(cpu="c", cores=1, torch="2")
    return Result(
        title="t",
        command="c",
        commit="0" * 40,
        date="2026-11-29",
        machine=machine,
        seeds=(0,),
        rows=list(rows),
    )


def test_the_page_says_what_is_free_what_is_frozen_and_what_fails():
    good = {
        "source": "transformers",
        "model": "bert",
        "architecture": "BertModel",
        "verified": True,
        "covered": 0.98,
        "params_left": 0.3,
        "reasons": [["is an output of the network", 2]],
    }
    crash = {"source": "smp", "model": "Unet/x", "verified": False, "failure": "TraceError: in <a | b>"}
    untrained = {**good, "model": "gpt2", "trains": "RuntimeError: no"}
    text = coverage.page_of(result(good, untrained, crash), "3 commits")
    assert "Of 3 networks 1 pass all checks; 1 of these are free to 95% or more." in text
    assert "| bert (`BertModel`) | 98% | 30% | yes | 2 × is an output of the network |" in text
    assert "| gpt2 (`BertModel`) | 98% | 30% | no, training: RuntimeError: no |" in text
    assert r"| Unet/x | – | – | no: TraceError: in &lt;a \| b> |" in text


def test_a_failure_is_a_result(tmp_path: Path):
    row = zoo.apart(
        {"source": "transformers", "model": "none", "architecture": "NoSuchNet", "settings": {}}, 300
    )
    assert row["verified"] is False
    assert "has no network 'NoSuchNet'" in row["failure"]
