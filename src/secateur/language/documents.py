"""Read documents from text files, JSON lines, folders, data sets and other iterables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.errors import DataError
from secateur.formats import listed

Source = str | Path | Iterable[Any]
"""A file, a folder, or an iterable of texts or of rows that hold a text."""

_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".txt", ".md", *_LINES)
"""Endings of the names of files with text that are read from a folder."""

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read_documents(source: Source, field: str = "text") -> Iterator[str]:
    """Read the documents of a source.

    Args:
        source: a text file, which is one document; JSON lines (``.jsonl``), of which each is one; a folder of
            such files, read in the order of their names; or an iterable of strings or of mappings, such as a
            data set of the library datasets.
        field: name of the text in JSON lines and mappings.

    Yields:
        The documents that are not empty, in order.

    Raises:
        DataError: a file cannot be read, is empty, is not UTF-8, or a line or row holds no text; the message
            names the file and the line.

    >>> list(read_documents(["One.", {"text": "Two."}]))
    ['One.', 'Two.']
    """
    if isinstance(source, str | Path):
        path = Path(source)
        for file in _files(path) if path.is_dir() else [path]:
            yield from _of_file(file, field)
        return
    for number, row in enumerate(source, start=1):
        yield from _filled(row if isinstance(row, str) else _text_of(row, field, f"row {number}"))


def splits_of(source: Any) -> dict[str, Any]:
    """Divide a source into ``train``, ``val`` and ``test``, where it is divided already.

    Args:
        source: a folder with files or folders of these names (``train.txt``, ``valid.jsonl``, ``test/``), or
            a mapping of data sets; anything else is one text.

    Returns:
        The sources by split; under an empty name the source itself, if it is not divided.

    Raises:
        DataError: a split is there twice, or a mapping has none.

    >>> splits_of({"train": ["a"], "validation": ["b"]})
    {'train': ['a'], 'val': ['b']}
    >>> splits_of(["a", "b"])
    {'': ['a', 'b']}
    """
    if isinstance(source, str | Path):
        path = Path(source)
        named = [(entry.name.partition(".")[0], entry) for entry in _entries(path)] if path.is_dir() else []
    elif isinstance(source, Mapping):
        named = [(str(name), part) for name, part in source.items()]
    else:
        named = []
    found: dict[str, Any] = {}
    for split, names in _SPLITS.items():
        parts = [part for name, part in named if name in names]
        if len(parts) > 1:
            raise DataError(f"{source} holds {listed([str(part) for part in parts])}; keep one of them")
        if parts:
            found[split] = parts[0]
    if isinstance(source, Mapping) and not found:
        raise DataError(f"a mapping with the keys {listed([*map(str, source)])} has no split 'train'")
    return found or {"": source}


def is_text_folder(path: Path) -> bool:
    """Return whether a folder holds files of text, itself or in the folder of a split."""
    return any(entry.suffix in SUFFIXES for entry in _entries(path) if entry.is_file()) or any(
        inner.suffix in SUFFIXES
        for entry in _entries(path)
        if entry.is_dir() and entry.name in _SPLITS
        for inner in _entries(entry)
    )


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _files(path: Path) -> list[Path]:
    """List the files with text in a folder and its folders."""
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"{path} holds no text; expected files that end in {', '.join(SUFFIXES)}")
    return found


def _of_file(file: Path, field: str) -> Iterator[str]:
    """Read the documents of a file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: is not UTF-8; convert the file to UTF-8") from error
    if not text.strip():
        raise DataError(f"{file} is empty")
    if file.suffix not in _LINES:
        yield text
        return
    for number, row in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold other breaks
        if row.strip():
            yield from _filled(_text_of(_parsed(row, file, number), field, f"{file}, line {number}"))


def _parsed(line: str, file: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{file}, line {number}: is not JSON ({error})") from error


def _text_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: is of type {type(row).__name__}, not a text or a mapping with {field!r}")
    text = row.get(field)
    if not isinstance(text, str):
        keys = listed([*map(str, row)]) or "nothing"
        raise DataError(
            f"{where}: holds no text {field!r}, but {keys}; give the name of the text as data.text.field"
        )
    return text


def _filled(text: str) -> Iterator[str]:
    if text.strip():
        yield text
