"""Show results in tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from secateur.formats import count, factor, milliseconds, percent, size
from secateur.training.metrics import PERPLEXITY, TOP_1, kind_in, kind_of, metric_of_path

Figures = Mapping[str, Any]

_LONG = 28
"""Longest name in characters that is not shortened."""

_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("top1", "top-1 accuracy", TOP_1.show),
    ("perplexity", "perplexity", PERPLEXITY.show),
    ("map50", "mAP50", percent),
    ("map", "mAP50-95", percent),
    ("params", "parameters", count),
    ("macs", "MACs per example", count),
    ("file_bytes", "file", size),
    ("memory_bytes", "peak memory", size),
    ("latency_ms", "latency", milliseconds),
    ("prefill", "tokens read / s", count),
    ("decode", "tokens written / s", count),
)

_SPEEDS = ("prefill", "decode")


def before_after(before: Figures, after: Figures) -> Table:
    """Show two networks side by side, and how much smaller the second is.

    Args:
        before: ``top1`` or another metric, ``params``, ``macs``, ``file_bytes`` and ``latency_ms``; absent
            ones are left out.
        after: the same keys.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading, side in (("", "left"), ("before", "right"), ("after", "right"), ("", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for key, label, show in _ROWS:
        if before.get(key) is not None and after.get(key) is not None:
            table.add_row(label, show(before[key]), show(after[key]), _change(key, before[key], after[key]))
    return table


def figures_of_one(figures: Figures) -> Table:
    """Show one network.

    Args:
        figures: as for :func:`before_after`.
    """
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, label, show in _ROWS:
        if figures.get(key) is not None:
            table.add_row(label, show(figures[key]))
    return table


def frontier_table(frontier: Mapping[str, Any], evaluated_on: str) -> Table:
    """Show the points of a frontier, with the standard errors of their metric.

    Args:
        frontier: as in ``summary.json``.
        evaluated_on: the data on which networks were evaluated, ``validation`` or ``test``.
    """
    table = Table(box=box.SIMPLE_HEAD)
    examples = frontier["baseline"]["examples"]
    metric = kind_in(frontier["baseline"])
    quality = f"{metric.name} on {f'{examples:,} ' if examples else ''}{evaluated_on} {metric.unit}"
    timed = any(point["latency_ms"] is not None for point in frontier["points"])
    headings = ("point", "budget", "MACs", "parameters", *(("latency",) if timed else ()), quality)
    headings += ("loss",) if examples else ()
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in [frontier["baseline"], *frontier["points"]]:
        budget = f"{row['share']:.0%} of {frontier['by']}" if row["share"] else ""
        time = (milliseconds(row["latency_ms"]),) if timed else ()
        name = str(row["number"]) if row["number"] else "whole"
        quality = metric.show(row[metric.key])
        if examples:
            quality += f" ± {metric.show_error(row['error'])}"
        cost = count(row["cost"]["macs"]), count(row["cost"]["params"])
        loss = (f"{row['loss']:.3f}",) if examples else ()
        table.add_row(name, budget, *cost, *time, quality, *loss)
    return table


def protocol_line(protocol: Mapping[str, Any], error: float) -> str:
    """Format how a perplexity was measured.

    Args:
        protocol: as in ``summary.json``.
        error: its standard error.

    >>> print(protocol_line({"block": 256, "stride": 256, "blocks": 16, "predicted": 4080}, 0.5))
    standard error 0.5; 16 blocks of 256 tokens, 256 apart; tokens are predicted from those before them ...
    """
    return (
        f"standard error {PERPLEXITY.show_error(error)}; {protocol['blocks']:,} blocks of "
        f"{protocol['block']:,} tokens, {protocol['stride']:,} apart; tokens are predicted from those before "
        "them in a block"
    )


def verification_line(verification: Mapping[str, Any]) -> str:
    """Format the verification of all cuts of a run in one line, with what it left out.

    Args:
        verification: as in ``summary.json``.

    >>> found = {"ok": True, "cuts": 2, "channels_removed": 9, "max_error": 2e-12, "tolerance": 1e-8,
    ...          "outputs": 640, "inputs": 3, "modes": ["evaluation"], "precision": "float64",
    ...          "not_checked": ["training mode (the network does not run in it)"]}
    >>> print(verification_line(found))
    verified: after each of 2 cuts ... equals the original with the removed channels masked (9 channels; ...)
    """
    cuts, channels = verification["cuts"], verification["channels_removed"]
    if not cuts:
        return "the network was within the budget already; nothing was cut"
    when = f"after each of {cuts} cuts" if cuts > 1 else "after the cut"
    error, tolerance = verification["max_error"], verification["tolerance"]
    verdict = "verified" if verification["ok"] else "NOT VERIFIED"
    does = "equals" if verification["ok"] else "must equal"
    left_out = "; ".join(verification["not_checked"])
    return (
        f"{verdict}: {when} the smaller network {does} the original with the removed channels masked "
        f"({channels:,} channels; largest relative difference {error:.1e}, allowed {tolerance:.0e}; "
        f"{compared(verification)})" + (f"; not checked: {left_out}" if left_out else "")
    )


def compared(verification: Mapping[str, Any]) -> str:
    """Format how much was compared, and how.

    Args:
        verification: as in ``summary.json``.
    """
    outputs, inputs = verification["outputs"], verification["inputs"]
    return (
        f"{outputs} outputs, {inputs} input{'s' if inputs != 1 else ''}, "
        f"{' and '.join(verification['modes']) or 'no common'} mode, {verification['precision']}"
    )


def side_by_side(networks: Sequence[tuple[str, Figures]]) -> Table:
    """Show networks, one per row; factors are relative to the first.

    Args:
        networks: name and figures of each.
    """
    used = [row for row in _ROWS if any(figures.get(row[0]) is not None for _, figures in networks)]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("network")
    for _, label, _ in used:
        table.add_column(label, justify="right")
    first = networks[0][1]
    for position, (name, figures) in enumerate(networks):
        cells = []
        for key, _, show in used:
            value = figures.get(key)
            change = _change(key, first.get(key), value) if position else ""
            if key == "latency_ms" and figures.get("latency_noise"):
                change = "noise"
            cells.append(f"{show(value)}  {change}".strip() if value is not None else "–")
        table.add_row(name, *cells)
    return table


def brief(names: Sequence[str]) -> dict[str, str]:
    """Shorten long paths to their last part, where that is unique.

    Args:
        names: of networks and files.

    >>> brief(["/home/me/images/runs/2026/big", "/home/me/images/runs/2026/small.onnx", "resnet18"])
    {'/home/me/images/runs/2026/big': '…/big', '/home/me/images/runs/2026/small.onnx': '…/small.onnx', \
'resnet18': 'resnet18'}
    """
    last = [Path(name).name for name in names]
    return {
        name: f"…/{end}" if len(name) > _LONG and "/" in name and last.count(end) == 1 else name
        for name, end in zip(names, last, strict=True)
    }


def _change(key: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    kind = kind_of(key)
    if kind is not None:
        return kind.change(before, after) + (" points" if kind.is_share else "")
    if key in _SPEEDS:
        return f"×{after / before:.2f}"
    return factor(before, after)


def conditions_line(latency: Mapping[str, Any]) -> str:
    """Format the conditions under which times were measured.

    Args:
        latency: as in ``summary.json``.

    >>> conditions_line({"device": "cpu", "threads": 2, "batch": 1, "runs": 50})
    'latency: median of 50 runs each, alternating; batch 1, cpu, 2 threads'
    """
    threads = latency["threads"]
    what = f"prompt of {latency['prompt']} tokens" if "prompt" in latency else "latency"
    where = f"{latency['device']}, {threads} thread{'s' * (threads != 1)}"
    return f"{what}: median of {latency['runs']} runs each, alternating; batch {latency['batch']}, {where}"


def timing_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show times under all conditions, relative to the first network under the same conditions.

    Args:
        rows: ``name``, ``runtime``, ``batch``, ``threads``, ``median_ms``, ``low_ms``, ``high_ms``,
            ``times_as_fast`` and ``noise`` of each.
    """
    table = Table(box=box.SIMPLE_HEAD, title="latency, alternating runs", title_justify="left")
    for heading in ("network", "runtime"):
        table.add_column(heading, overflow="fold")
    for heading in ("batch", "threads", "median", "quartiles", "as fast as the first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row["batch"], row["threads"])):
        spread = f"{milliseconds(row['low_ms'])} to {milliseconds(row['high_ms'])}"
        gain = "noise" if row["noise"] else f"{row['times_as_fast']:.2f} times"
        table.add_row(
            row["name"],
            row["runtime"],
            str(row["batch"]),
            str(row["threads"]),
            milliseconds(row["median_ms"]),
            spread,
            gain,
        )
    return table


def prediction_table(predictions: Sequence[Mapping[str, Any]]) -> Table:
    """Show the most probable classes of each image.

    Args:
        predictions: each with ``image`` and ``classes``, as the job returned them.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading, side in (("image", "left"), ("class", "left"), ("probability", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for prediction in predictions:
        for number, found in enumerate(prediction["classes"]):
            image = Text("" if number else prediction["image"], overflow="fold")
            table.add_row(image, Text(found["name"]), percent(found["probability"]))
    return table


def agreements(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show how well criteria correlate with the oracle, the best within groups first.

    Args:
        rows: ``criterion``, ``per_group`` (or ``None``), ``raw`` and ``normalized`` of each.
    """
    table = Table(box=box.SIMPLE_HEAD, title="rank correlation with the loss change")
    table.add_column("criterion")
    for heading in ("within groups", "all channels", "normalised"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: 2.0 if row["per_group"] is None else -row["per_group"]):
        within = "-" if row["per_group"] is None else f"{row['per_group']:.3f}"
        table.add_row(row["criterion"], within, f"{row['raw']:.3f}", f"{row['normalized']:.3f}")
    return table


def path_table(path: Sequence[Mapping[str, Any]]) -> Table:
    """Show every network that a search produced, the largest first.

    Args:
        path: as in ``summary.json``.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading, side in (("left", "right"), ("MACs", "right"), ("parameters", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    metric = metric_of_path(path)
    table.add_column(f"{metric.name} on validation images", justify="right")
    table.add_column("")
    table.add_column("checkpoint")
    for point in sorted(path, key=lambda item: -item["share"]):
        cost, quality = point["cost"], point[f"validation_{metric.key}"]
        table.add_row(
            percent(point["share"]),
            count(cost["macs"]) if cost else "",
            count(cost["params"]) if cost else "",
            metric.show(quality),
            "accepted" if point["held"] else "not reachable" if quality is None else "rejected",
            Path(point["checkpoint"]).name if point["checkpoint"] else "the original",
        )
    return table
