"""The examples in the help of every command are ones that work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from click.testing import Result

from secateur.cli import app

Command = Callable[..., Result]

GROUP = typer.main.get_command(app)
assert isinstance(GROUP, click.Group) or hasattr(GROUP, "commands")
EXAMPLE = re.compile(r"^ +secateur (.+)$", re.MULTILINE)
EXAMPLES = [example for command in GROUP.commands.values() for example in EXAMPLE.findall(command.help or "")]


def test_every_command_has_examples():
    assert {example.split()[0] for example in EXAMPLES} == set(GROUP.commands)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_understood(example: str):
    name, *words = shlex.split(example)
    context = GROUP.commands[name].make_context(name, words)
    given = {word for word in words if word.startswith("--")}
    known = {option for parameter in context.command.params for option in parameter.opts}
    assert given <= known
    assert all(
        value is not None for value in (context.params[p.name] for p in context.command.params if p.required)
    )


IN_ORDER = (
    "train --model secateur:digits",
    "prune runs/digits --data digits --macs",
    "evaluate",
    "inspect mobilenet_v2",
    "export",
    "measure runs/digits",
)


@pytest.mark.slow
def test_the_examples_on_digits_run_as_they_are_printed(
    secateur: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ran = set()
    for start in IN_ORDER:
        for example in EXAMPLES:
            if example.startswith(start):
                result = secateur(*shlex.split(example))
                assert result.exit_code == 0, (example, result.output)
                ran.add(example.split()[0])
    assert ran == {"train", "prune", "evaluate", "inspect", "export", "measure"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "runs",
        "small.onnx",
        "small.pt2",
        "small-int8.onnx",
    }
