from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import secateur

ROOT = Path(secateur.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def test_every_file_says_what_it_holds() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_file_or_function_is_defined_twice_in_one_place() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        assert not [name for name, count in names.items() if count > 1], path
