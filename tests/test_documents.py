"""Every block of Python in the documents runs, in order, as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.criteria import criterion_names, unregister

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/criteria.md", "docs/latency.md"])
def test_code_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall((ROOT / name).read_text())
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "document"}
    known = set(criterion_names())
    with torch.random.fork_rng():
        for number, block in enumerate(blocks):
            exec(compile(block, f"{name}, block {number + 1}", "exec"), names)
    for criterion in set(criterion_names()) - known:
        unregister(criterion)


def test_the_table_of_criteria_is_complete() -> None:
    text = (ROOT / "docs" / "criteria.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == sorted(
        criterion_names(), key=lambda name: text.index(f"| `{name}`")
    )
