"""Write files so that a reader finds either the complete old or the complete new content."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EXPORTED = (".onnx", ".pt2")
"""Endings of the names of exported files."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Create a temporary file beside ``path`` that replaces it when the block succeeds.

    The data are on the disk before the name refers to them, so a reader finds the old or the new file at any
    moment, also after a kill or a power cut. If the block fails, the temporary file is removed and ``path``
    is not changed.

    Args:
        path: the file to create or to replace; its folder must exist.

    Yields:
        The path to write to: an empty file, which may be replaced by another.

    Raises:
        OSError: if the folder is missing, read-only or full.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # the writer may have created another file, readable only by its owner
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text completely or not at all.

    Args:
        path: the file to create or to replace.
        text: its whole content.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "note.txt", "one")
    ...     write_text(Path(folder) / "note.txt", "two")
    ...     [file.read_text() for file in Path(folder).iterdir()]
    ['two']
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to a file, and wait until it is on the disk.

    If that fails, for example on a full disk, the file is truncated to its old length. A kill or a power cut
    may leave a part of the text.

    Args:
        path: the file; created if there is none.
        text: the text to add.

    Raises:
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_text(Path(folder) / "log.txt", "one,")
    ...     append_text(Path(folder) / "log.txt", "two")
    ...     (Path(folder) / "log.txt").read_text()
    'one,two'
    """
    with path.open("ab", buffering=0) as file:
        size, left = file.tell(), text.encode("utf-8")
        try:
            while left:  # a full disk may accept only a part
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
