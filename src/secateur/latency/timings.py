"""Timings: every operator that was ever measured on this machine, kept in a file.

One line of JSON each, appended as soon as it is measured: an interrupted measurement goes on where
it stopped, and another network finds what it shares with earlier ones.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from secateur.errors import UsageError

CACHE = "SECATEUR_CACHE"
"""Name of the environment variable that says in which folder timings are kept."""


class Timings:
    """Milliseconds by what was measured and under which conditions.

    Args:
        path: a file to read and to append to; without, timings are forgotten with this object.

    Raises:
        UsageError: the file cannot be read or written.

    Example:
        >>> timings = Timings()
        >>> timings.put("cpu, 1 thread", "aten.relu.default(float32[8])", 0.25)
        >>> timings.get("cpu, 1 thread", "aten.relu.default(float32[8])")
        0.25
        >>> timings.get("cpu, 2 threads", "aten.relu.default(float32[8])") is None
        True
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[tuple[str, str], float] = {}
        if path is not None:
            self._read(path)

    @classmethod
    def at_home(cls) -> Timings:
        """Those of this user: in ``$SECATEUR_CACHE``, or ``secateur`` in the user's folder of caches."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"
        return cls(Path(os.environ.get(CACHE) or cache) / "timings.jsonl")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, conditions: str, what: str) -> float | None:
        """Milliseconds, if they are known.

        Args:
            conditions: device, threads, versions.
            what: the operator with the sizes of its arguments.
        """
        return self._known.get((conditions, what))

    def put(self, conditions: str, what: str, milliseconds: float) -> None:
        """Keeps a time.

        Args:
            conditions: device, threads, versions.
            what: the operator with the sizes of its arguments.
            milliseconds: its time.

        Raises:
            UsageError: the file cannot be written.
        """
        self._known[conditions, what] = milliseconds
        if self.path is None:
            return
        line = json.dumps({"conditions": conditions, "what": what, "ms": milliseconds}) + "\n"
        try:
            # One write of one line: two processes that measure at once do not mix their lines.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UsageError(f"timings cannot be kept in {self.path}: {error.strerror}") from error

    def _read(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            if text and not text.endswith("\n"):  # a line that was cut off by a kill
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        except OSError as error:
            raise UsageError(
                f"timings cannot be kept in {path}: {error.strerror}; set {CACHE} to a folder of your own"
            ) from error
        for line in text.splitlines():
            entry = _entry(line)
            if entry is not None:
                self._known[entry[0], entry[1]] = entry[2]


def _entry(line: str) -> tuple[str, str, float] | None:
    """What a line holds; ``None`` for a line that is damaged: it is measured again."""
    try:
        data = json.loads(line)
        milliseconds = float(data["ms"])
        found = str(data["conditions"]), str(data["what"]), milliseconds
    except (ValueError, KeyError, TypeError):
        return None
    return found if math.isfinite(milliseconds) and milliseconds >= 0 else None
