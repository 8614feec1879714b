"""Write the page on networks of other libraries from the result that ``benchmarks/zoo.py`` publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Result
from benchmarks.tables import Table

NAME = "families"
"""Of the result file."""

PAGE = Path("docs/coverage.md")
TITLE = "Networks of other libraries: what may be cut"

_LIBRARIES = {
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "smp": "segmentation-models-pytorch",
    "diffusers": "diffusers",
}

_INTRODUCTION = """\
This page lists networks of transformers, ultralytics, segmentation-models-pytorch and diffusers, with what
Secateur can cut of each. They are small and have random weights; what may be cut depends on the code, not on
the size.

Of every network half of each group is removed at random. Then the smaller network is verified against the
masked original, trained for a step, saved, loaded again and compared.

- **free**: share of the first two dimensions of all weights along which channels may be cut, by the size of
  the weights. Outputs of the network and tables of words and positions are left out. The second dimension
  of a grouped convolution counts too, although only whole groups are removed, so a network with large ones
  stays below 100%.
- **checked**: `yes` if the cut is verified, the smaller network trains, and it is the same after saving and
  loading.
- **frozen**: groups that stay as they are, and why, the most frequent reasons first."""


def page_of(result: Result, age: str) -> str:
    """Make the page.

    Args:
        result: what the zoo published.
        age: how many commits came after the measurement, in words.
    """
    rows = result.rows
    good = [row for row in rows if passes(row)]
    whole = sum(row["covered"] >= 0.95 for row in good)
    changed = ", with uncommitted changes" if result.modified else ""
    measured = f"Measured at commit `{result.commit[:9]}`{changed} ({result.date}), {age} before this page"
    parts = [
        f"<!-- Written by `python -m benchmarks render` from {NAME}.json; edits are overwritten. -->",
        f"# {TITLE}",
        _INTRODUCTION,
        f"Of {len(rows)} networks {len(good)} pass all checks; {whole} of these are free to 95% or more.",
        f"{measured} was written, with torch {result.machine.torch}. {result.machine.remark}",
        f"```text\n{result.command}\n```",
    ]
    for source, library in _LIBRARIES.items():
        own = [row for row in rows if row["source"] == source]
        if own:
            parts += [f"## {library}", str(_table(own))]
    return "\n\n".join([*parts, *result.remarks]) + "\n"


def passes(row: Mapping[str, Any]) -> bool:
    """Return whether a network passed all checks."""
    return bool(row["verified"]) and not row.get("trains") and not row.get("loads")


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        ("network", "free", "parameters left", "checked", "frozen"),
        [(_network(row), *_figures(row), _checked(row), _frozen(row)) for row in rows],
    )


def _network(row: Mapping[str, Any]) -> str:
    return f"{row['model']} (`{row['architecture']}`)" if "architecture" in row else row["model"]


def _figures(row: Mapping[str, Any]) -> tuple[str, str]:
    if "failure" in row:
        return "–", "–"
    return f"{row['covered']:.0%}", f"{row['params_left']:.0%}"


def _checked(row: Mapping[str, Any]) -> str:
    """Say ``yes``, or what failed."""
    if "failure" in row:
        return f"no: {_cell(row['failure'])}"
    if not row["verified"]:
        return "; ".join(["no: the cut is not verified", *map(_cell, row.get("not_checked", ()))])
    for key, words in (("trains", "training"), ("loads", "loading")):
        if row.get(key):
            return f"no, {words}: {_cell(row[key])}"
    return "yes"


def _frozen(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{count} × {_cell(reason)}" for reason, count in row.get("reasons", ()))


def _cell(text: str) -> str:
    """Shorten a message for a cell of a table, and escape what Markdown would read."""
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return text if len(text) <= 160 else f"{text[:157]}..."
