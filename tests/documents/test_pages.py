"""Every block of Python and every command in the documents runs, in order, as it is printed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from secateur.criteria import base, criterion_names
from tests.documents.page import blocks, run
from tests.documents.prepared import PREPARED

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *DOCS]
    if any(block.language in ("python", "sh") for block in blocks(path.read_text(encoding="utf-8")))
]
NEEDS = {
    "docs/how-to/transformers.md": "transformers",
    "docs/how-to/language-models.md": "transformers",
    "docs/how-to/speech.md": "transformers",
    "docs/how-to/diffusion.md": "diffusers",
    "docs/how-to/detectors.md": "ultralytics",
}
"""Libraries that pages show."""
SLOW = {
    "docs/distributed.md",
    "docs/how-to/detection.md",
    "docs/how-to/diffusion.md",
    "docs/how-to/language-models.md",
    "docs/how-to/speech.md",
    "docs/how-to/transformers.md",
    "docs/latency.md",
    "docs/tutorials/images.md",
    "docs/when-not.md",
}
"""Pages that take long; other tests try what they show."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PAGES]
)
def test_a_page_runs_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    if name in PREPARED:
        PREPARED[name](tmp_path)
    known = set(criterion_names())
    with torch.random.fork_rng(), warnings.catch_warnings():
        if name in NEEDS:
            warnings.simplefilter("ignore")  # those libraries warn of what they do themselves
            pytest.importorskip(NEEDS[name])
        run(ROOT / name)
    for criterion in set(criterion_names()) - known:
        base._REGISTRY.pop(criterion)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_block_says_what_it_is(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8")):
        assert block.language in ("python", "sh", "text", "json"), f"line {block.line}: {block.language!r}"


def test_the_table_of_criteria_is_complete() -> None:
    text = (ROOT / "docs" / "criteria.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) ^ set(criterion_names()) == set(), "a row of the table in docs/criteria.md is missing"
