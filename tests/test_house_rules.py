from __future__ import annotations

import ast
from pathlib import Path

import pytest

import secateur

ROOT = Path(secateur.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_idea_a_file_and_a_function(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length < 70, f"{node.name} has {length} lines without its docstring"
