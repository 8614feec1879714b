"""The figures of a run for papers: SVG and PNG, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.errors import UsageError
from secateur.report.drawings.axes import ITSELF
from secateur.report.drawings.layers import costliest
from secateur.report.records import Records, read_records
from secateur.report.shell import AFTER, BEFORE, CYCLE, GONE, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _ROW = 6.3, 0.16  # inches: the text of a page, and a line of a list
_MOST_LABELS = 40
_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "secateur",
    "svg.fonttype": "none",
}


def write_figures(run: Path | str, out: Path | str) -> list[Path]:
    """Draws the figures of a run's report as files.

    Args:
        run: the run folder.
        out: a folder for the files, made if it does not exist.

    Returns:
        The files: an SVG and a PNG for each figure that the run allows.

    Raises:
        UsageError: matplotlib is not installed, or ``out`` is a file.
        RunError: there is no run, or its summary is damaged.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures need matplotlib: pip install 'secateur[figures]'") from error
    records, folder = read_records(run), Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give --figures a folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    # A figure of its own, and no pyplot: nothing is left behind in the process that asks.
    with mpl.rc_context(_STYLE):
        for name, (draw, height) in _figures(records).items():
            figure = Figure(figsize=(_WIDTH, height), layout="constrained")
            draw(figure.subplots())
            for ending in ("svg", "png"):
                path = folder / f"{name}.{ending}"
                figure.savefig(path, dpi=300, metadata={"Date": None} if ending == "svg" else None)
                files.append(path)
    return files


def _figures(records: Records) -> dict[str, tuple[Callable[[Axes], None], float]]:
    """What can be drawn, with its height in inches."""
    found: dict[str, tuple[Callable[[Axes], None], float]] = {}
    if any(epoch.top1 is not None for epoch in records.course.epochs):
        found["course"] = (lambda axes: _course(axes, records), 2.8)
    portrait = records.portrait
    if portrait is not None:
        rows = len(costliest(portrait.layers, "ms")[0])
        found["widths"] = (lambda axes: _widths(axes, records), 2.8)
        found["coupling"] = (lambda axes: _coupling(axes, records), 1.2 + _ROW * len(portrait.groups))
        found["layers"] = (lambda axes: _layers(axes, records), 0.9 + _ROW * rows)
    if records.scores is not None and len(records.scores):
        found["scores"] = (lambda axes: _scores(axes, records), 0.9 + 2 * _ROW * len(records.scores))
    if records.course.cuts:
        found["verification"] = (lambda axes: _verification(axes, records), 2.2)
    return found


def _course(axes: Axes, records: Records) -> None:
    whole = (records.summary.get("baseline") or {}).get("macs")
    points = [(epoch.macs or whole, epoch.top1) for epoch in records.course.epochs]
    known = [(macs, top1) for macs, top1 in points if macs is not None and top1 is not None]
    axes.plot(
        *_columns(known), "o-", color=AFTER, markersize=3, linewidth=0.8, label="validation, each epoch"
    )
    sides = (records.summary.get("baseline") or {}, records.summary.get("pruned") or {})
    ends = [(side["macs"], side["top1"]) for side in sides if side.get("top1") is not None]
    if ends:
        axes.plot(*_columns(ends), "D", color=GONE, markersize=5, label="test, before and after")
    axes.invert_xaxis()
    axes.set(xlabel="MACs per example", ylabel="accuracy")
    axes.legend(frameon=False)


def _columns(points: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]


def _widths(axes: Axes, records: Records) -> None:
    assert records.portrait is not None
    groups = records.portrait.groups
    place = np.arange(len(groups))
    for key, colour in (("before", BEFORE), ("after", AFTER)):
        width = np.array([getattr(group, key) for group in groups])
        axes.bar(place, width, bottom=-width / 2, width=0.88, color=colour, label=key)
    frozen = [number for number, group in enumerate(groups) if group.frozen is not None]
    width = np.array([groups[number].before for number in frozen])
    axes.bar(frozen, width, bottom=-width / 2, width=0.88, color="white", edgecolor=MUTED, hatch="////")
    axes.set(yticks=[], ylabel="channels")
    _names(axes, [group.name for group in groups])
    axes.legend(frameon=False, ncols=2)


def _words(names: Iterable[str]) -> list[str]:
    """Names as matplotlib shows them unchanged: a dollar begins no formula."""
    return [name.replace("$", r"\$") for name in names]


def _names(axes: Axes, names: list[str]) -> None:
    if len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), _words(names), rotation=45, ha="right", fontsize=6)
    else:
        axes.set(xticks=[], xlabel=f"{len(names)}, in forward order")


def _coupling(axes: Axes, records: Records) -> None:
    assert records.portrait is not None
    groups = records.portrait.groups
    order = {layer.name: number for number, layer in enumerate(records.portrait.layers)}
    touched = sorted(
        {name for group in groups for name in group.modules},
        key=lambda name: (order.get(name, 1 << 30), name),
    )
    place = {name: number for number, name in enumerate(touched)}
    for row, group in enumerate(groups):
        colour = MUTED if group.frozen is not None else CYCLE[row % len(CYCLE)]
        along = [place[name] for name in group.modules]
        axes.plot([min(along), max(along)], [row, row], color=colour, linewidth=0.8)
        for modules, marker, filled in (
            (group.written_by, "s", True),
            (group.carried_by, "|", True),
            (group.read_by, "o", False),
        ):
            face = colour if filled else "white"
            at = [place[name] for name in modules]
            axes.plot(at, [row] * len(at), marker, color=colour, markerfacecolor=face, markersize=3.5)
    axes.set_yticks(range(len(groups)), _words(group.name for group in groups), fontsize=6)
    axes.invert_yaxis()
    _names(axes, touched)


def _layers(axes: Axes, records: Records) -> None:
    assert records.portrait is not None
    shown, rest = costliest(records.portrait.layers, "ms")
    place = np.arange(len(shown))
    for shift, key, colour in ((-0.2, "before", BEFORE), (0.2, "after", AFTER)):
        times = [getattr(layer, key).ms or 0.0 for layer in shown]
        axes.barh(place + shift, times, height=0.38, color=colour, label=key)
    axes.set_yticks(place, _words(layer.name or ITSELF for layer in shown), fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds" + (f" ({len(rest)} smaller layers are left out)" if rest else ""))
    axes.legend(frameon=False)


def _scores(axes: Axes, records: Records) -> None:
    assert records.scores is not None
    how = (records.config.get("recipe") or {}).get("normalize", "l2")
    scores = records.scores.normalized(how)
    fates: Mapping[str, tuple[int, ...]] = {}
    if records.portrait is not None:
        fates = {group.name: group.fate for group in records.portrait.groups}
    for row, (name, found) in enumerate(scores.items()):
        values = np.asarray(found.tolist())
        gone = np.asarray(fates.get(name) or np.zeros(len(values))) > 0
        for shift, chosen, colour in ((-0.2, values[~gone], AFTER), (0.2, values[gone], GONE)):
            if len(chosen):
                line = {"color": colour, "linewidth": 0.8}
                axes.boxplot(
                    chosen,
                    orientation="horizontal",
                    positions=[row + shift],
                    widths=0.3,
                    boxprops=line,
                    whiskerprops=line,
                    capprops=line,
                    medianprops=line,
                    flierprops={"markersize": 1.5, "markeredgecolor": colour},
                )
    axes.set_yticks(range(len(scores)), _words(scores), fontsize=6)
    axes.invert_yaxis()
    (criterion,) = _words([scores.criterion])
    axes.set_xlabel(f"{criterion} score, {how}-normalised: what stays (green), what goes (red)")


def _verification(axes: Axes, records: Records) -> None:
    from matplotlib.ticker import MaxNLocator

    cuts = records.course.cuts
    axes.semilogy(range(1, len(cuts) + 1), [max(cut.max_error, 1e-12) for cut in cuts], "o", color=AFTER)
    ends = [0.5, *range(1, len(cuts) + 1), len(cuts) + 0.5]
    limits = [cut.tolerance for cut in (cuts[0], *cuts, cuts[-1])]
    axes.semilogy(ends, limits, color=GONE, linestyle="--", label="allowed")
    axes.set(xlabel="cut", ylabel="relative difference")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
