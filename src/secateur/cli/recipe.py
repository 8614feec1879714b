"""Define the command ``secateur recipe``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from secateur.cli.job_settings import read_recipe, settable

if TYPE_CHECKING:
    from secateur.settings import Settings


def recipe(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE.toml",
            help="default, plain, one-shot, original, paper, language; a recipe file or a run's config.toml; "
            "or train, for the settings of training.",
        ),
    ] = "default",
) -> None:
    """Print all settings of a recipe, with their meaning, as TOML; the output is a valid file for --recipe.

    Each is also a name for --set, with dots between the tables: [finetune] epochs is finetune.epochs.

    Examples:
      secateur recipe
      secateur recipe plain
      secateur recipe train
    """
    from secateur.jobs.settings import PruneJob, TrainJob

    if name == "train":
        job: type[PruneJob | TrainJob] = TrainJob
        lines = list(_tables({"fit": TrainJob.model_fields["fit"].default}, {}))[1:]
    else:
        job = PruneJob
        found = read_recipe(name)
        lines = list(_tables(dict(found), _meanings(type(found))))
    further = [field for field in settable(job) if field != "fit"]
    for line in [*lines, "", "# Further names for --set:", *_further(job, further)]:
        typer.echo(line)


def _tables(
    values: Mapping[str, Any], meanings: Mapping[str, str], path: tuple[str, ...] = ()
) -> Iterator[str]:
    """Format settings as TOML: plain values first, then tables; each meaning once."""
    from secateur.settings import Settings

    tables = {name: value for name, value in values.items() if isinstance(value, Settings | Mapping)}
    for name, value in values.items():
        if name not in tables:
            yield _line(name, value, meanings.get(name))
    for name, value in tables.items():
        yield ""
        yield f"[{'.'.join(map(_key, (*path, name)))}]" + _comment(meanings.get(name))
        inner = value if isinstance(value, Mapping) else dict(value)
        yield from _tables(inner, {} if isinstance(value, Mapping) else _meanings(type(value)), (*path, name))


def _further(model: type[Settings], names: list[str], prefix: str = "") -> Iterator[str]:
    """Format the settings of a job, with their defaults, as comments."""
    from pydantic_core import PydanticUndefined

    from secateur.settings import settings_in

    meanings = _meanings(model)
    for name in names:
        field = model.model_fields[name]
        inner = settings_in(field.annotation)
        if inner is not None:
            yield from _further(inner, list(inner.model_fields), f"{prefix}{name}.")
        else:
            default = None if field.default is PydanticUndefined else field.default
            yield "# " + _line(prefix + name, default, meanings.get(name)).removeprefix("# ")


def _line(name: str, value: object, meaning: str | None) -> str:
    import tomli_w

    if value is None:  # TOML has no null value
        return f"# {name} =" + _comment(meaning)
    plain = list(value) if isinstance(value, tuple) else value
    written = tomli_w.dumps({"value": plain}).strip().removeprefix("value")
    return name + written + _comment(meaning)


def _key(name: str) -> str:
    import tomli_w

    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def _comment(meaning: str | None) -> str:
    return f"  # {meaning}" if meaning else ""


def _meanings(model: type[Settings]) -> dict[str, str]:
    """Read the meaning of settings: the first sentence in the docstring of their class, and the choices."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"\n\s*\n", section)[0]
        for name, text in re.findall(r"^ {8}(\w+): ((?:.|\n {9,})*)", section, re.MULTILINE):
            words = re.sub(r":\w+:`(?:\w+\.)*(\w+)`", r"\1", " ".join(text.split())).replace("``", "")
            found[name] = re.split(r"\.(?=\s|$)", words)[0]
    for name, field in model.model_fields.items():
        choices = map(str, get_args(field.annotation)) if get_origin(field.annotation) is Literal else ()
        meaning = found.get(name, "")
        if any(choice not in meaning for choice in choices):
            found[name] = f"{meaning} ({', '.join(map(str, get_args(field.annotation)))})".strip()
    return found
