"""Define the command line, the only place that prints.

``secateur --help`` starts quickly, because commands import their dependencies only when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated

import typer

from secateur.cli.demo import demo
from secateur.cli.errors import reported
from secateur.cli.evaluate import evaluate
from secateur.cli.export import export
from secateur.cli.frontier import frontier
from secateur.cli.inspect import inspect
from secateur.cli.measure import measure
from secateur.cli.memory import keep_freed_memory
from secateur.cli.oracle import oracle
from secateur.cli.predict import predict
from secateur.cli.prune import prune
from secateur.cli.recipe import recipe
from secateur.cli.report import report
from secateur.cli.train import train

app = typer.Typer(
    name="secateur",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from secateur.cli.version import version_lines

        for line in version_lines():
            typer.echo(line)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print versions and devices."),
    ] = False,
) -> None:
    """Make trained PyTorch networks smaller and faster by whole channels, and verify every cut.

    Start with [bold]secateur demo[/bold]: it trains, prunes and measures a small network in a minute.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """


def _help(command: Callable[..., None]) -> str:
    """Format a command's docstring: each paragraph becomes one line; indented ones keep their lines."""
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(
        f"\b\n{text}" if "\n  " in text or text.startswith("  ") else " ".join(text.split())
        for text in paragraphs
    )


commands = (
    *(demo, inspect, train, frontier, prune, evaluate, predict, measure, export, report, oracle, recipe),
)
for command in commands:
    app.command(help=_help(command))(reported(command))


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app()
