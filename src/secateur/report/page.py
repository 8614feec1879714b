"""Write the report of a run as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from secateur.files import write_text
from secateur.formats import count, factor, milliseconds, size
from secateur.jobs.network_summary import GroupSummary
from secateur.jobs.verifications import combined
from secateur.report.drawings.axes import ITSELF
from secateur.report.drawings.coupling import coupling
from secateur.report.drawings.course import epoch_by_epoch, metric_against_cost
from secateur.report.drawings.frontier import frontier
from secateur.report.drawings.layers import layer_costs
from secateur.report.drawings.scores import score_distributions, width_curves
from secateur.report.drawings.verification import verification
from secateur.report.drawings.widths import widths
from secateur.report.records import Records, read_records
from secateur.report.rendering import Drawing, render
from secateur.report.repeat import repetition
from secateur.settings import flatten
from secateur.training.metrics import MAP, MAP_50, PERPLEXITY, TOP_1, kind_of
from secateur.training.run_folder import REPORT, RunError, note_exported

_SUMMARY = (
    "model",
    "status",
    "error",
    "criterion",
    "latency",
    "path",
    "training",
    "frontier",
    "evaluated_on",
    "start",
    "seed",
    "seconds",
    "classes",
    "skipped",
)
"""Entries of a summary that the template reads; a run that is not finished, or failed, lacks some."""

_MOST_ROWS = 400
"""Most cuts, epochs or notes in a table; of a thousand cuts, the first and the last are shown."""


def write_report(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of a run as one HTML file, which needs no other file.

    Args:
        run: the run folder.
        out: the file; ``report.html`` in the run folder if not given.

    Returns:
        The file.

    Raises:
        RunError: there is no run, or its summary is damaged.
        OSError: the file cannot be written.
    """
    path = Path(run) / REPORT if out is None else Path(out)
    write_text(path, run_page(run))
    note_exported(path)
    return path


def run_page(run: Path | str) -> str:
    """Format the report of a run as HTML.

    Only the run folder is read: neither the data nor the code of the network is needed. The report names
    what the folder does not contain.

    Args:
        run: the run folder.

    Raises:
        RunError: there is no run, or it is damaged.
    """
    records = read_records(run)
    try:
        return _rendered(records)
    except (TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run} was not written by this version of Secateur ({type(error).__name__}: {error}); "
            "it cannot be reported"
        ) from error


def _rendered(records: Records) -> str:
    summary, network = {**dict.fromkeys(_SUMMARY), **records.summary}, records.network
    model = summary["model"] or records.path.resolve().name
    return render(
        "run.html",
        drawings(records),
        title=f"{model}: report of a run",
        model=model,
        summary=summary,
        figures=comparison(records),
        repeat=repetition(records),
        course=records.course,
        epochs=_ends(records.course.epochs),
        cuts=_ends(records.course.cuts),
        verification=combined([cut.verification for cut in records.course.cuts]),
        outcome=_outcome(records),
        notes=_ends(records.course.notes),
        groups=network.groups if network else (),
        branches=network.branches if network else (),
        search=_search(network.groups if network else ()),
        layers=network.layers if network else (),
        timing=network.timing if network else None,
        metric=records.metric,
        itself=ITSELF,
        scores=_score_rows(records),
        curves=records.curves,
        answers=records.answers,
        missing=records.missing,
        settings=[
            (name, json.dumps(value, ensure_ascii=False, default=str))
            for name, value in flatten({**records.config, **_chosen(records.summary)})
        ],
    )


def _chosen(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which ultralytics trained, as settings; nothing if it did not train."""
    return {"ultralytics": summary["ultralytics"]} if summary.get("ultralytics") else {}


def drawings(records: Records) -> list[Drawing]:
    """Draw all figures for which there are records, in the order of the page.

    Args:
        records: of the run.
    """
    found = [frontier(records), metric_against_cost(records), epoch_by_epoch(records)]
    network = records.network
    if network is not None:
        found.append(widths(network.groups))
        found.append(coupling(network.groups, [layer.name for layer in network.layers]))
        found.append(layer_costs(network.layers))
    if records.scores is not None:
        removed_by = {group.name: group.removed_by for group in network.groups} if network else {}
        how = (records.config.get("recipe") or {}).get("normalize", "l2")
        found.append(score_distributions(records.scores, removed_by, how))
    if records.curves is not None:
        found.append(width_curves(records.curves))
    if records.course.cuts:
        found.append(verification(records.course.cuts))
    return [one for one in found if one is not None]


_ROWS = (
    ("top1", "test accuracy", TOP_1.show),
    ("map50", "validation mAP50", MAP_50.show),
    ("map", "validation mAP50-95", MAP.show),
    ("perplexity", "perplexity of the test text", PERPLEXITY.show),
    ("params", "parameters", count),
    ("macs", "MACs per example", count),
    ("file_bytes", "file", size),
    ("memory", "activations", size),
    ("latency_ms", "latency", milliseconds),
)

_NO_TEST = {
    "top1": "validation accuracy (epochs were chosen on these images)",
    "perplexity": "perplexity of the validation text (epochs were chosen on it)",
}
"""The names of metrics where there is no test data besides that of validation."""


def comparison(records: Records) -> list[dict[str, str]]:
    """Compare each figure before and after the run.

    Args:
        records: of the run; of one that only trained, there is no before.

    Returns:
        ``name``, ``before``, ``after``, ``change`` and its ``unit`` in words; figures that were not measured
        are left out.
    """
    summary = records.summary
    after = dict(summary.get("pruned") or summary.get("network") or {})
    before = dict(summary.get("baseline") or {})
    if records.network is not None:
        before["memory"] = records.network.cost_before.get("memory")
        after["memory"] = records.network.cost_after.get("memory")
    rows = []
    for key, name, show in _ROWS:
        old, new = before.get(key), after.get(key)
        if new is not None:
            shown = {"before": show(old) if old is not None else "", "after": show(new)}
            if key in _NO_TEST and (summary.get("start") or {}).get("tested_on") == "validation":
                name = _NO_TEST[key]
            words = {side: text.replace(" ", "\N{NO-BREAK SPACE}") for side, text in shown.items()}
            kind = kind_of(key)
            unit = "points" if kind is not None and kind.is_share and old is not None else ""
            rows.append({"name": name, **words, "change": _change(key, old, new), "unit": unit})
    return rows


def _change(key: str, before: float | None, after: float) -> str:
    if before is None:
        return ""
    kind = kind_of(key)
    if kind is not None:
        return kind.change(before, after)
    return factor(before, after)


def _outcome(records: Records) -> dict[str, int]:
    """Count cuts, removed channels and branches of the final network; for a search, the networks tried."""
    path = records.summary.get("path") or ()
    cuts = list(records.course.cuts)
    if path:
        kept = min((point for point in path if point["held"]), key=lambda point: float(point["share"]))
        cuts = [cut for cut in cuts if cut.attempt == kept["number"]]
    channels = sum(cut.channels for cut in cuts)
    branches = sum(cut.branches for cut in cuts)
    return {"cuts": len(cuts), "channels": channels, "branches": branches, "made": max(0, len(path) - 1)}


def _search(groups: Sequence[GroupSummary]) -> dict[str, Any]:
    """Build the search index of the page: all modules, and for each group the numbers of its modules."""
    place: dict[str, int] = {}
    touched = {group.name: [place.setdefault(name, len(place)) for name in group.modules] for group in groups}
    return {"modules": list(place), "groups": touched}


def _score_rows(records: Records) -> dict[str, Any] | None:
    if records.scores is None:
        return None
    rows = []
    for name, values in records.scores.items():
        ordered = values.sort().values
        five = [float(ordered[round(share * (len(ordered) - 1))]) for share in (0, 0.25, 0.5, 0.75, 1)]
        rows.append({"name": name, "channels": len(ordered), "five": five})
    return {"criterion": records.scores.criterion, "rows": rows, "unscored": dict(records.scores.unscored)}


def _ends(rows: Sequence[Any]) -> dict[str, Any]:
    """Select all rows, or the first and the last of very many and the number between them."""
    if len(rows) <= _MOST_ROWS:
        return {"first": rows, "left_out": 0, "last": ()}
    half = _MOST_ROWS // 2
    return {"first": rows[:half], "left_out": len(rows) - 2 * half, "last": rows[-half:]}
