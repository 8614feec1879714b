"""Resolve the settings of a job: from a file, from options, and from ``--set NAME=VALUE``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.cli.command_line import command_line
from secateur.cli.processes import process_counts
from secateur.errors import UsageError, closest_or_all

if TYPE_CHECKING:
    from secateur.jobs.settings import FrontierJob, Job, PruneJob, TrainJob
    from secateur.recipes import Recipe

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

_TRAINING = ("between", "finetune", "distillation", "data.mixup")
"""Settings of training, which have no effect without it."""

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


def _resolved(job: type[J], options: Options, recipe: str | None, sets: Sequence[str], finetune: bool) -> J:
    """Resolve a job that prunes; the arguments are those of :func:`prune_job`."""
    from secateur.jobs.settings import DATA_FREE, WITHOUT_DATA, PruneJob
    from secateur.recipes.recipe import CHANNELS_LEFT, PRESETS, Recipe
    from secateur.settings import merged

    file = recipe if recipe is not None and _is_file(recipe) else None
    if recipe not in (None, file, *PRESETS):
        raise UsageError(f"--recipe {recipe}: unknown; choose one of {', '.join(PRESETS)}, or give FILE.toml")
    given = _Given(options, sets, file)
    in_file = _read(Path(file), "prune", PruneJob) if file else {}
    in_file = {name: value for name, value in in_file.items() if name in job.model_fields}
    if given.any("network.source"):  # its other settings belong to another network
        in_file.pop("network", None)
    if given.any(*_GOALS):
        in_file = {name: value for name, value in in_file.items() if name not in _GOALS}
    recipe_options = {name: value for name, value in given.options.items() if name in Recipe.model_fields}
    job_options = {name: value for name, value in given.options.items() if name not in recipe_options}
    job_sets, recipe_sets = given.split(job, Recipe)
    # What is given on the command line replaces what is in the file, and --set replaces options.
    settings = merged(merged(in_file, job_options), job_sets)
    recipe_changes = merged(recipe_options, recipe_sets)
    recipe_in_file = settings.pop("recipe", {})
    has_data = "source" in settings.get("data", {})
    if not finetune or not has_data:
        _refuse_training(given, finetune)
    if not has_data:
        idle = set(recipe_changes) - WITHOUT_DATA - set(_TRAINING)
        given.mistakes += [(name, "no effect without --data") for name in sorted(idle)]
    preset = recipe or _usual_recipe(settings.get("data", {}).get("source"))
    if "budget" in job.model_fields and not any(goal in settings for goal in _GOALS):
        share = CHANNELS_LEFT.get(recipe_in_file.get("preset", preset))
        if share is None:
            raise UsageError(
                "the size of the pruned network is not given; give at least one of --macs, --params, "
                "--channels, --memory, --latency (what may remain), or --max-drop (what accuracy may be lost)"
            )
        settings["budget"] = {"channels": share}

    def resolve_recipe() -> Recipe:
        base = Recipe.from_table(recipe_in_file) if file else Recipe.preset(preset)
        changes = recipe_changes if finetune else merged(_untrained(base, recipe_changes), recipe_changes)
        if not has_data and "criterion" not in recipe_in_file:
            changes = {"criterion": DATA_FREE, **changes}
        criterion = str(changes.get("criterion", base.criterion))
        if criterion not in CRITERIA and not is_own_code(settings.get("network", {})):
            given.mistakes.append(("criterion", f"unknown{closest_or_all(criterion, CRITERIA)}"))
        return base.changed(changes)

    resolved = given.collect(resolve_recipe, Recipe.preset("plain"))
    return given.checked(lambda: job(**_with_processes(settings, given), recipe=resolved))


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

    table = _read(Path(file), "train", TrainJob) if file else {}
    given = _Given(options, sets, file)
    job_sets, _ = given.split(TrainJob)
    if given.any("network.source"):
        table.pop("network", None)
    found = merged(merged(table, given.options), job_sets)

    def resolve() -> TrainJob:
        job = TrainJob(**_with_processes(found, given))
        refuse_idle(job.fit.needs("fit"), given.paths)
        return job

    return given.checked(resolve)


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
        self.options: dict[str, Any] = {}
        self._words: dict[str, str] = {}
        self._sets: dict[str, Any] = {}
        self._file = file
        self._names = {path: option for path, (option, _) in options.items()}
        for path, (option, value) in options.items():
            if value is not None:
                self._words[path] = option if not option.startswith("-") else f"{option} {value}"
                self.options = merged(self.options, _nested(path.split("."), value))
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
        self._sets = merged(self._sets, table)

    @property
    def paths(self) -> Collection[str]:
        """Return the dotted paths of the settings that the command line gives."""
        return self._words.keys()

    def any(self, *paths: str) -> bool:
        """Return whether the command line gives any of some settings, or settings within them."""
        return any(_overlap(path, given) for path in paths for given in self._words)

    def set_to(self, *paths: str) -> list[str]:
        """List what ``--set`` sets within some settings to something other than zero or false."""
        from secateur.settings import flatten

        return [
            self._words[path]
            for path, value in flatten(self._sets)
            if value and any(f"{path}.".startswith(f"{start}.") for start in paths)
        ]

    def split(
        self, job: type[Job], recipe: type[Recipe] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split what ``--set`` gives into settings of a job and of a recipe; others are mistakes."""
        from secateur.settings import setting_paths, suggestion

        first, second = settable(job), list(recipe.model_fields) if recipe is not None else []
        paths = [path for path in setting_paths(job) if not path.startswith("recipe.")]
        paths = [*(setting_paths(recipe) if recipe is not None else ()), *paths]
        for name in (name for name in self._sets if name not in (*first, *second)):
            self.mistakes.append((name, f"unknown{suggestion(name, paths, [*second, *first])}"))
        chosen = [
            {name: self._sets[name] for name in names if name in self._sets} for names in (first, second)
        ]
        return chosen[0], chosen[1]

    def collect(self, resolve: Callable[[], T], otherwise: T) -> T:
        """Call a function and return its result; collect its mistakes, and return something else then."""
        from secateur.settings import SettingsError

        try:
            return resolve()
        except SettingsError as error:
            self.mistakes += error.mistakes
            return otherwise

    def checked(self, resolve: Callable[[], T]) -> T:
        """Call a function and return its result.

        Raises:
            UsageError: there are mistakes, here or noted before.
        """
        found = self.collect(resolve, None)
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


def text_table(sets: Sequence[str]) -> dict[str, Any]:
    """Read settings of text from texts ``data.text.NAME=VALUE``, for commands that have no other settings.

    Raises:
        UsageError: one is of another form.

    >>> text_table(["data.text.block=512", "data.text.stride=256"])
    {'block': 512, 'stride': 256}
    """
    from secateur.settings import merged

    found: dict[str, Any] = {}
    for text in sets:
        table = _parse(text) or {}
        inner = table.get("data", {}).get("text") if isinstance(table.get("data"), Mapping) else None
        if not isinstance(inner, Mapping):
            raise UsageError(f"--set {text}: write data.text.NAME=VALUE, such as data.text.block=512")
        found = merged(found, inner)
    return found


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
    here = {"command_line": command_line(), "given": tuple(sorted(given.paths))}
    return {**found, "device": {**device, **process_counts(devices)}, **here}


def _untrained(base: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes for a run without training: reconstruction, and one cut if no schedule is chosen."""
    paced = base.channels_per_step is not None or "channels_per_step" in changes
    phase = {"epochs": 0, "updates": None}
    return {**({} if paced else {"steps": 1}), "reconstruct": True, "between": phase, "finetune": phase}


def _refuse_training(given: _Given, finetune: bool) -> None:
    """Refuse settings of training in a run without training."""
    idle = " and ".join(given.set_to(*_TRAINING))
    if idle and not finetune:
        raise UsageError(f"--no-finetune and {idle} exclude each other; leave one of them out")
    if idle:
        raise UsageError(f"without --data nothing is trained; give --data, or leave out {idle}")
