"""Find the commands that repeat a run: the one that was typed, and one that reads its settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from secateur.report.records import Records
from secateur.training.run_folder import CONFIG


def repetition(records: Records) -> Mapping[str, Any]:
    """Collect what is needed to repeat a run.

    Args:
        records: of the run.

    Returns:
        ``command_line``: the command as it was typed, or ``None``; ``again``: the command that repeats the
        run with its settings, or ``None``; ``point``: the command that prunes to point ``N`` of a frontier,
        or ``None``; ``environment`` by name.
    """
    command, path = records.config.get("command"), records.path
    again = None
    if command in ("prune", "train"):
        out = path.with_name(f"{path.resolve().name}-again")
        again = shlex.join(["secateur", command, "--recipe", str(path / CONFIG), "--out", str(out)])
    point = None
    if command == "frontier":
        network, data = (records.config[name]["source"] for name in ("network", "data"))
        point = shlex.join(["secateur", "prune", network, "--data", data, "--measured", str(path)])
        point += " --point N --out RUN"
    return {
        "command_line": records.summary.get("command_line"),
        "again": again,
        "point": point,
        "environment": dict(records.summary.get("environment") or {}),
    }
