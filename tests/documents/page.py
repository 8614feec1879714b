"""Pages of documentation, and how their code is run.

A page is run from top to bottom in a folder of its own. Blocks marked ``python`` share one namespace; in
blocks marked ``sh`` each line is a command, and those that begin with ``secateur`` run in this process. A
block marked ``text`` right below is what must come out, where ``...`` stands for anything and spaces do
not count.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import secateur._torchvision  # noqa: F401  so that pages may import torchvision
from secateur.cli import app

_FENCE = re.compile(r"^```(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where it begins, and the output printed below it, if any."""

    language: str
    text: str
    line: int
    expected: str | None = None


def blocks(markdown: str) -> Iterator[Block]:
    """The blocks of a page, in order; an expected output belongs to the block above it."""
    found = list(_FENCE.finditer(markdown))
    for block, after in zip_longest(found, found[1:]):
        shown = (
            after is not None
            and block["language"] in ("python", "sh")
            and after["language"] == "text"
            and not markdown[block.end() : after.start()].strip()
        )
        line = markdown.count("\n", 0, block.start()) + 2
        yield Block(block["language"], block["text"], line, after["text"] if after and shown else None)


def run(path: Path) -> None:
    """Runs a page in the current folder; the first thing that is not as printed is an assertion error."""
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.language == "python":
            output = io.StringIO()
            source = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
            with redirect_stdout(output):
                exec(compile(source, str(path), "exec"), names)
            _compare(output.getvalue(), block, path)
        elif block.language == "sh":
            lines = block.text.replace("\\\n", " ").splitlines()
            _compare("".join(_shell(line) for line in lines), block, path)


def _shell(line: str) -> str:
    words = shlex.split(line, comments=True)
    if not words:
        return ""
    if words[0] != "secateur":
        return subprocess.run(["bash", "-euc", line], check=True, capture_output=True, text=True).stdout
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.stdout


def _compare(found: str, block: Block, path: Path) -> None:
    if block.expected is not None:
        parts = [r"\s+".join(map(re.escape, part.split())) for part in block.expected.split("...")]
        right = re.fullmatch(r"\s*" + ".*?".join(parts) + r"\s*", found, re.DOTALL)
        assert right, f"{path.name}, line {block.line}: printed is\n{block.expected}\nfound is\n{found}"
