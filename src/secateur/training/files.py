"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its place when the block ends well.

    The data is on the disk before the name points to it, so a reader finds the old file or the
    new one at any moment, also after a kill or a power cut. If the block fails the temporary
    file is removed and ``path`` is untouched.

    Args:
        path: the file to make or replace; its folder must exist.

    Yields:
        The path to write to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically.

    Args:
        path: the file to make or replace.
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


def _sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The permissions that new files are denied; ``mkstemp`` denies all but the owner's."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
