"""Which options a user gave, as opposed to what they stand at."""

from __future__ import annotations

from collections.abc import Collection

import typer


def given(context: typer.Context, names: Collection[str]) -> list[str]:
    """The options among these that the command line gives, as they are typed.

    Args:
        context: of the running command.
        names: of parameters of the command, such as ``weight_decay``.

    Returns:
        Their longest spellings, such as ``--weight-decay``, in the order of the command.

    >>> app = typer.Typer()
    >>> @app.command()
    ... def train(context: typer.Context, rate: float = 0.1, steps: int = 1) -> None:
    ...     print(given(context, {"rate", "steps"}))
    >>> app(["--rate", "0.1"], standalone_mode=False)
    ['--rate']
    """
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in names and _typed(context, str(parameter.name))
    ]


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
