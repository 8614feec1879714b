"""How to repeat a run: the command that was typed, and the program that reads its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report.records import Records
from secateur.training.run_folder import CONFIG

_PROGRAM = """\
import tomllib
from pathlib import Path

from secateur.jobs.{command} import {command}
from secateur.jobs.settings import {job}

settings = tomllib.loads(Path({config!r}).read_text())
del settings["command"], settings["version"]
{command}({job}(**(settings | {{"out": {out!r}}})))
"""
_JOBS = {"prune": "PruneJob", "train": "TrainJob"}


def repetition(records: Records) -> Mapping[str, Any]:
    """What is needed to do a run again.

    Args:
        records: of the run.

    Returns:
        ``command`` as it was typed and ``program`` in Python, or ``None``; ``environment`` by name.
    """
    command, path = str(records.config.get("command")), records.path
    program = None
    if command in _JOBS:
        again = path.with_name(f"{path.resolve().name}-again")
        program = _PROGRAM.format(
            command=command, job=_JOBS[command], config=str(path / CONFIG), out=str(again)
        )
    return {
        "command": records.summary.get("typed"),
        "program": program,
        "environment": dict(records.summary.get("environment") or {}),
    }
