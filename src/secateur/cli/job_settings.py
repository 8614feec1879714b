"""Resolve the settings of a job: from a file, from options, and from ``--set NAME=VALUE``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.cli.command_line import command_line
from secateur.cli.processes import process_counts
from secateur.errors import UsageError, closest_or_all

if TYPE_CHECKING:
    from secateur.jobs.settings import DataChoice, FrontierJob, Job, NetworkChoice, PruneJob, TrainJob
    from secateur.recipes import Recipe
    from secateur.training.settings import DeviceSettings

T = TypeVar("T")
J = TypeVar("J", "PruneJob", "FrontierJob")

Options = Mapping[str, tuple[str, Any]]
"""For the dotted path of each setting, the option that gives it and its value (``None`` if not given)."""

CRITERIA = (
    *("activation-mean", "activation-std", "apoz", "block-influence", "bn-scale", "flap", "fpgm", "lamp"),
    *("magnitude", "mutual-information", "obd", "random", "reconstruction"),
    *("taylor", "taylor-squared", "taylor-weight", "wanda"),
)
"""The names of the criteria. They are repeated here, since their classes need PyTorch."""

_NOT_SET = frozenset(("recipe", "out", "overwrite", "resume", "command_line", "given", "by", "points"))
"""Settings of a job that only options give."""

_GOALS = ("budget", "search")


def prune_job(
    options: Options, recipe: str | None, sets: Sequence[str], *, finetune: bool = True
) -> PruneJob:
    """Resolve a pruning job.

    Args:
        options: of the command.
        recipe: name of a recipe, or a file: a recipe, or the ``config.toml`` of a run.
        sets: texts ``NAME=VALUE``, where names are those of the recipe (``finetune.epochs``) or of the job
            (``data.batch_size``).
        finetune: whether networks are trained.

    Raises:
        UsageError: something is wrong; the message names all mistakes by their options.
    """
    from secateur.jobs.settings import PruneJob

    return _resolved(PruneJob, options, recipe, sets, finetune)


def frontier_job(options: Options, recipe: str | None, sets: Sequence[str]) -> FrontierJob:
    """Resolve the job of a frontier: like a pruning job without training and budget.

    Args:
        options: of the command.
        recipe: as for :func:`prune_job`; the budget of a file is not used.
        sets: as for :func:`prune_job`.

    Raises:
        UsageError: something is wrong; the message names all mistakes by their options.
    """
    from secateur.jobs.settings import FrontierJob

    return _resolved(FrontierJob, options, recipe, sets, finetune=False)


def _resolved(kind: type[J], options: Options, recipe: str | None, sets: Sequence[str], finetune: bool) -> J:
    """Resolve a job that prunes; the arguments are those of :func:`prune_job`.

    What the command line gives replaces what is in the file.
    """
    from secateur.jobs.settings import DATA_FREE, PruneJob
    from secateur.recipes.recipe import PRESETS, Recipe
    from secateur.settings import Need, merged, refuse_idle

    file = recipe if recipe is not None and _is_file(recipe) else None
    if recipe not in (None, file, *PRESETS):
        raise UsageError(f"--recipe {recipe}: unknown; choose one of {', '.join(PRESETS)}, or give FILE.toml")
    given = _Given(options, sets, file)
    in_file = _without_replaced(_read(Path(file), "prune", PruneJob), given) if file else {}
    table = in_file.pop("recipe", {})
    ours, changes = given.split(kind, Recipe)
    settings = merged({name: value for name, value in in_file.items() if name in kind.model_fields}, ours)
    data = settings.get("data", {}).get("source")
    if file is None:
        table = {"preset": recipe or _usual_recipe(data)}
    if "budget" in kind.model_fields and not any(goal in settings for goal in _GOALS):
        settings["budget"] = {"channels": _usual_share(table.get("preset"))}

    def resolve_recipe() -> Recipe:
        base = Recipe.from_table(table)
        if not finetune:
            base = base.untrained()
        if data is None and "criterion" not in table:
            base = base.with_changes({"criterion": DATA_FREE})
        criterion = str(changes.get("criterion", base.criterion))
        if criterion not in CRITERIA and not is_own_code(settings.get("network", {})):
            given.mistakes.append(("criterion", f"unknown{closest_or_all(criterion, CRITERIA)}"))
        return base.with_changes(changes)

    chosen = given.collect(resolve_recipe)
    arguments = _with_processes(settings, given) | {"recipe": chosen or Recipe.preset("plain")}
    job = given.collect(lambda: kind(**arguments, given=given.paths))
    needs = [] if job is None else list(job.needs())
    if chosen is not None and not finetune:  # of a job that never trains, its own needs say so first
        reason = "with --no-finetune", "leave that out"
        needs += chosen.training_needs(*reason)
        needs.append(Need("data.mixup", bool(settings.get("data", {}).get("mixup")), *reason))
    needs += [] if chosen is None else chosen.needs()
    given.collect(lambda: refuse_idle(needs, given.paths))
    return given.checked(job)


def _usual_share(preset: str | None) -> float:
    """Return the share of the channels that a recipe leaves if no budget is given.

    Raises:
        UsageError: the recipe does not say it.
    """
    from secateur.recipes.recipe import CHANNELS_LEFT

    share = CHANNELS_LEFT.get(preset or "")
    if share is None:
        raise UsageError(
            "the size of the pruned network is not given; give at least one of --macs, --params, "
            "--channels, --memory, --latency (what may remain), or --max-drop (what accuracy may be lost)"
        )
    return share


def _without_replaced(table: dict[str, Any], given: _Given) -> dict[str, Any]:
    """Leave out of a file the network and the goal, if the command line gives others."""
    left_out = ["network"] if given.any("network.source") else []
    left_out += _GOALS if given.any(*_GOALS) else ()
    return {name: value for name, value in table.items() if name not in left_out}


def limit_of_point(measured: Path | None, point: int, others: Options) -> dict[str, tuple[str, Any]]:
    """Return the limit of a point of a frontier, as an option.

    Args:
        measured: the run of the frontier.
        point: its number.
        others: options that limit something too.

    Raises:
        UsageError: there is no such run or point, or another limit is given.
    """
    from secateur.jobs.frontier import budget_of

    given = [f"{name} {value}" for name, value in others.values() if value is not None]
    if given:
        raise UsageError(f"--point {point} and {given[0]} exclude each other; leave one of them out")
    if measured is None:
        raise UsageError(f"--point {point}: give the run of secateur frontier with --measured RUN")
    if not (measured / "summary.json").is_file():
        raise UsageError(f"--measured {measured}: there is no run in it; give that of secateur frontier")
    by, share = budget_of(measured, point)
    return {f"budget.{by}": ("--point", share)}


def train_job(options: Options, file: str | None, sets: Sequence[str]) -> TrainJob:
    """Resolve a training job.

    Args:
        options: of the command.
        file: settings by name, or the ``config.toml`` of a run.
        sets: texts ``NAME=VALUE``, such as ``fit.epochs=4``.

    Raises:
        UsageError: something is wrong; the message names all mistakes by their options.
    """
    from secateur.jobs.settings import TrainJob
    from secateur.settings import merged, refuse_idle

    given = _Given(options, sets, file)
    table = _without_replaced(_read(Path(file), "train", TrainJob), given) if file else {}
    ours, _ = given.split(TrainJob)
    arguments = _with_processes(merged(table, ours), given)
    job = given.collect(lambda: TrainJob(**arguments, given=given.paths))
    if job is not None:
        given.collect(lambda: refuse_idle(job.needs(), given.paths))
    return given.checked(job)


def checked_by_options(options: Options, kind: Callable[..., T], **others: Any) -> T:
    """Make settings from options, whose names stand in the messages.

    Args:
        options: of the command.
        kind: the class of settings.
        **others: values that no option gives alone.

    Raises:
        UsageError: a value is wrong; the message names all mistakes by their options.

    >>> from secateur.budget import Budget
    >>> checked_by_options({"macs": ("--macs", 2.5)}, Budget)
    Traceback (most recent call last):
    secateur.errors.UsageError: --macs 2.5: 2.5 is neither a share nor an amount...
    """
    given = _Given(options, (), None)
    return given.checked(given.collect(lambda: kind(**given.values, **others)))


def network_choice(
    source: str,
    *,
    weights: str | None = None,
    builder: str | None = None,
    size: int | None = None,
    classes: int | None = None,
    trusted: bool = False,
) -> NetworkChoice:
    """Choose a network, for commands without a run folder.

    Raises:
        UsageError: a value is wrong.
    """
    from secateur.jobs.settings import NetworkChoice

    options = {
        "source": ("RUN", source),
        "weights": ("--weights", weights),
        "builder": ("--builder", builder),
        "size": ("--size", size),
        "classes": ("--classes", classes),
    }
    return checked_by_options(options, NetworkChoice, trusted=trusted)


def data_choice(
    source: str, batch_size: int | None, strict: bool, sets: Sequence[str] | None = None
) -> DataChoice:
    """Choose images or text, for commands without a run folder.

    Args:
        source: the user's word for them.
        batch_size: examples in a batch, if given.
        strict: whether unreadable images are refused.
        sets: texts ``data.text.NAME=VALUE``; of other forms, they are refused.

    Raises:
        UsageError: a value is wrong.
    """
    from secateur.jobs.settings import Data

    options = {
        "data.source": ("--data", source),
        "data.batch_size": ("--batch-size", batch_size),
        "data.strict": ("--strict", strict or None),
    }
    given = _Given(options, sets or (), None)
    for path in given.paths - options.keys():
        if not path.startswith("data.text."):
            given.mistakes.append((path, "write data.text.NAME=VALUE, such as data.text.block=512"))
    return given.checked(given.collect(lambda: Data(**given.values))).data


def device_choice(accelerator: str, precision: str = "float32", devices: int | None = None) -> DeviceSettings:
    """Choose where to compute, and in how many processes, for commands without a run folder.

    Raises:
        UsageError: a value is wrong, or ``torchrun`` has started another number of processes.
    """
    from secateur.training.settings import DeviceSettings

    options = {"accelerator": ("--device", accelerator), "precision": ("--precision", precision)}
    return checked_by_options(options, DeviceSettings, **process_counts(devices))


def read_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or from a file.

    Args:
        name: of a recipe, or of a file: a recipe, or the ``config.toml`` of a run.

    Raises:
        UsageError: there is no such recipe, or the file is wrong.
    """
    from secateur.jobs.settings import PruneJob
    from secateur.recipes.recipe import Recipe

    return Recipe.from_table(
        _read(Path(name), "prune", PruneJob)["recipe"] if _is_file(name) else {"preset": name}
    )


class _Given:
    """Collect the settings that the command line gives, the words that give them, and mistakes.

    Args:
        options: of the command.
        sets: texts ``NAME=VALUE``.
        file: the source of the other settings, if any.
    """

    def __init__(self, options: Options, sets: Sequence[str], file: str | None) -> None:
        from secateur.settings import merged

        self.mistakes: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self._words: dict[str, str] = {}
        self._set: dict[str, None] = {}
        self._file = file
        self._names = {path: option for path, (option, _) in options.items()}
        for path, (option, value) in options.items():
            if value is not None:
                self._words[path] = option if not option.startswith("-") else f"{option} {value}"
                self.values = merged(self.values, _nested(path.split("."), value))
        for text in sets:
            self._add(text)

    def _add(self, text: str) -> None:
        from secateur.settings import flatten, merged

        table = _parse(text)
        if table is None:
            self.mistakes.append(("", f"--set {text}: write NAME=VALUE, such as finetune.epochs=4"))
            return
        for path, _ in flatten(table):
            other = self._word(path)
            if other is not None:
                self.mistakes.append(("", f"{other} and --set {text} give the same setting; leave one out"))
            self._words[path] = f"--set {text}"
        self._set |= dict.fromkeys(table)
        self.values = merged(self.values, table)

    @property
    def paths(self) -> frozenset[str]:
        """Return the dotted paths of the settings that the command line gives."""
        return frozenset(self._words)

    def any(self, *paths: str) -> bool:
        """Return whether the command line gives any of some settings, or settings within them."""
        return any(_overlap(path, given) for path in paths for given in self._words)

    def split(
        self, job: type[Job], recipe: type[Recipe] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split what is given into settings of a job and of a recipe; others are mistakes."""
        from secateur.settings import setting_paths, suggestion

        of_recipe = list(recipe.model_fields) if recipe is not None else []
        names = [*of_recipe, *settable(job)]
        paths = [path for path in setting_paths(job) if not path.startswith("recipe.")]
        paths = [*(setting_paths(recipe) if recipe is not None else ()), *paths]
        unknown = [name for name in self._set if name not in names]
        for name in unknown:
            self.mistakes.append((name, f"unknown{suggestion(name, paths, names)}"))
        known = {name: value for name, value in self.values.items() if name not in unknown}
        ours = {name: value for name, value in known.items() if name in job.model_fields}
        return ours, {name: value for name, value in known.items() if name in of_recipe}

    def collect(self, resolve: Callable[[], T]) -> T | None:
        """Call a function and return its result; collect its mistakes, and return nothing then."""
        from secateur.settings import SettingsError

        try:
            return resolve()
        except SettingsError as error:
            self.mistakes += error.mistakes
            return None

    def checked(self, found: T | None) -> T:
        """Return what was resolved.

        Raises:
            UsageError: mistakes were collected.
        """
        if self.mistakes or found is None:
            raise UsageError("; ".join(self._line(path, text) for path, text in self.mistakes))
        return found

    def _word(self, path: str) -> str | None:
        """Return the words that give a setting, one that contains it, or one within it."""
        return next((word for given, word in self._words.items() if _overlap(path, given)), None)

    def _line(self, path: str, text: str) -> str:
        word = self._word(path) if path else None
        if word is None and text == "is required":
            word = next((name for known, name in self._names.items() if _overlap(path, known)), None)
        if word is None:
            return ": ".join(filter(None, (self._file, path, text)))
        hidden = [path] if word.startswith("--set") and not word.startswith(f"--set {path}") else []
        return ": ".join([word, *hidden, text])


def _overlap(one: str, other: str) -> bool:
    """Return whether one dotted path is the other, or within it.

    >>> _overlap("data", "data.source"), _overlap("data", "database")
    (True, False)
    """
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _usual_recipe(data: str | None) -> str:
    """Return the name of the recipe that is taken if none is given."""
    from secateur.jobs.settings import is_text

    if data is None:
        return "plain"
    return "language" if is_text(data) else "default"


def is_own_code(network: Mapping[str, Any]) -> bool:
    """Return whether a network is built by a file of the user, which may register criteria.

    >>> is_own_code({"source": "run", "builder": "net.py:make"}), is_own_code({"source": "resnet18"})
    (True, False)
    """
    named = (str(network.get(name, "")) for name in ("source", "builder"))
    return any(text.rpartition(":")[0].endswith(".py") for text in named)


def _is_file(recipe: str) -> bool:
    return recipe.endswith(".toml") or "/" in recipe


def _read(path: Path, command: str, job: type[Job]) -> dict[str, Any]:
    """Read a file as settings of a job; settings that the job does not have belong to its recipe."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--recipe {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--recipe {path}: this is not TOML: {error}") from None
    if table.pop("command", command) != command:
        raise UsageError(f"--recipe {path}: this is a run of another command than secateur {command}")
    for name in ("version", *(_NOT_SET - {"recipe"})):
        table.pop(name, None)
    if "recipe" not in job.model_fields:
        return table
    found = {name: table.pop(name) for name in job.model_fields if name in table}
    return {**found, "recipe": {**found.get("recipe", {}), **table}}


def settable(job: type[Job]) -> list[str]:
    """List the settings of a job that ``--set`` gives."""
    return [name for name in job.model_fields if name not in _NOT_SET]


def _parse(text: str) -> dict[str, Any] | None:
    """Parse ``NAME=VALUE``, where the value is TOML, or else a string.

    >>> _parse("finetune.epochs=4"), _parse("widths.multiple_of=auto")
    ({'finetune': {'epochs': 4}}, {'widths': {'multiple_of': 'auto'}})
    """
    name, equals, value = text.partition("=")
    for written in (value, json.dumps(value.strip(), ensure_ascii=False)):
        try:
            return tomllib.loads(f"{name} {equals} {written}")
        except tomllib.TOMLDecodeError:
            continue
    return None


def _nested(names: Sequence[str], value: object) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _with_processes(found: Mapping[str, Any], given: _Given) -> dict[str, Any]:
    """Add settings from the current process: the number of processes, and the command line for the record."""
    device = dict(found.get("device", {}))
    devices = device.pop("devices", None)
    device.pop("nodes", None)
    if "LOCAL_WORLD_SIZE" in os.environ and not given.any("device.devices"):
        devices = None  # torchrun decides, not the file
    return {**found, "device": {**device, **process_counts(devices)}, "command_line": command_line()}
