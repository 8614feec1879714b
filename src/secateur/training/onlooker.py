"""A run folder as the processes see it that write nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.training.run import Run


class Onlooker(Run):
    """A run that another process fills: everything may be told to it, and nothing is written.

    Args:
        path: the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Onlooker(Path(folder)) as run:
    ...         run.log({"epoch": 1})
    ...     list(Path(folder).iterdir())
    []
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._records: list[str] = []
        self._summary: dict[str, Any] = {}

    def close(self) -> None:
        """Nothing was locked."""

    def _append(self, line: str) -> None:
        """Another process writes."""

    def _write(self, name: str, text: str) -> None:
        """Another process writes."""
