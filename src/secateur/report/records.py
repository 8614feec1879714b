"""Read a run folder for a report; missing or damaged parts are listed, and are not errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.errors import SecateurError
from secateur.jobs.network_summary import NetworkSummary
from secateur.report.course import Course, course_of
from secateur.training.metrics import MetricKind, kind_in, kind_named
from secateur.training.run_folder import ANSWERS, CONFIG, MEASURED, METRICS, NETWORK, RunError, read_summary

T = TypeVar("T")

_ABSENT = {
    CONFIG: "the settings, and how to repeat the run",
    METRICS: "the events of the run: epochs, cuts and their verification",
    NETWORK: "widths, couplings, frozen groups, and the costs and times of the layers",
    MEASURED: "the scores of the channels",
    ANSWERS: "accuracy by class, and the images whose answer changed",
}


@dataclass(frozen=True)
class Records:
    """The records of a run.

    Attributes:
        path: its folder.
        summary: its status and results.
        config: its settings; empty if they are missing.
        course: epochs, cuts and notes, in order.
        network: its summary before and after, if that was written.
        scores: of each channel of the unpruned network, if they were written.
        curves: the damage of each width of each group, if measured.
        answers: of the network before and after, by class and image by image, if they were compared.
        missing: the parts that the report cannot show, each with the reason.
    """

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    course: Course
    network: NetworkSummary | None
    scores: Scores | None
    curves: WidthCurves | None
    answers: Mapping[str, Any] | None
    missing: tuple[str, ...]

    @property
    def metric(self) -> MetricKind:
        """Return what the networks of the run were judged by."""
        if self.course.epochs:
            return kind_named(self.course.epochs[-1].metric_name)
        frontier = (self.summary.get("frontier") or {}).get("baseline")
        return kind_in(self.summary.get("baseline"), self.summary.get("network"), frontier)


def read_records(run: Path | str) -> Records:
    """Read a run folder.

    Args:
        run: the folder; the run may still be active.

    Raises:
        RunError: it is not a run folder, or its summary is damaged.
    """
    path = Path(run)
    try:
        summary: Any = read_summary(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path}/summary.json is damaged ({error}); there is nothing to report on") from error
    if not isinstance(summary, dict) or "status" not in summary:
        raise RunError(f"{path}/summary.json is not that of a run; there is nothing to report on")
    missing: list[str] = []
    # Only pruning writes both.
    wanted = {"train": (), "frontier": (MEASURED,)}.get(str(summary.get("command")), (NETWORK, MEASURED))
    measured = _read(path / MEASURED, _measured, missing, tell=MEASURED in wanted)
    return Records(
        path=path,
        summary=summary,
        config=_read(path / CONFIG, tomllib.loads, missing) or {},
        course=_read(path / METRICS, _course, missing) or Course(),
        network=_read(path / NETWORK, NetworkSummary.from_json, missing, tell=NETWORK in wanted),
        scores=measured[0] if measured else None,
        curves=measured[1] if measured else None,
        answers=_read(path / ANSWERS, json.loads, missing, tell=False),
        missing=tuple(missing),
    )


def _read(path: Path, parse: Callable[[str], T], missing: list[str], *, tell: bool = True) -> T | None:
    if not path.is_file():
        if tell:
            missing.append(f"{_ABSENT[path.name]}: the run holds no {path.name}")
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (SecateurError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing.append(f"{_ABSENT[path.name]}: {path.name} is damaged ({error})")
        return None


def _course(text: str) -> Course:
    return course_of(json.loads(line) for line in text.splitlines())


def _measured(text: str) -> tuple[Scores, WidthCurves | None]:
    found = json.loads(text)
    curves = found["curves"]
    return Scores.from_dict(found["scores"]), None if curves is None else WidthCurves.from_dict(curves)
