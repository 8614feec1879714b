"""Define the base class of settings: immutable, checked together, with errors that name every mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import UsageError, closest_or_all

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class SettingsError(UsageError):
    """Settings are wrong; the message names every mistake.

    Attributes:
        mistakes: for each mistake the dotted path of the setting and what is wrong with it; the path is empty
            if settings exclude each other.
    """

    def __init__(self, mistakes: Iterable[tuple[str, str]]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{path}: {text}" if path else text for path, text in self.mistakes))


class _RaisesSettingsError(ModelMetaclass):
    """Let a class raise ``SettingsError`` when it is called with wrong values.

    A metaclass, because an error raised in ``__init__`` would hide the other mistakes and the path where
    settings contain settings.
    """

    def __call__(cls: Any, *args: Any, **values: Any) -> Any:  # noqa: N805
        try:
            return ModelMetaclass.__call__(cls, *args, **values)
        except ValidationError as error:
            raise SettingsError(mistakes(error, cls)) from None


class Settings(BaseModel, metaclass=_RaisesSettingsError):
    """Immutable settings that refuse unknown names.

    Raises:
        SettingsError: at least one value is wrong; the message names all of them, with a dotted path.

    >>> class Rate(Settings):
    ...     steps: int = 1
    ...     decay: float = 0.5
    >>> Rate(steps="two", decai=0.1)
    Traceback (most recent call last):
    secateur.settings.SettingsError: steps: Input should be a valid integer, unable to parse string as an \
integer (is 'two'); decai: unknown; did you mean 'decay'?
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Need(NamedTuple):
    """A setting that needs something else, such as another setting or data of a kind.

    Attributes:
        path: dotted path of the setting, or of several within it.
        idle: whether it has no effect, since what it needs is not there.
        reason: why, after "no effect": ``"while reconstruct is false"``.
        remedy: what to do, other than leaving it out, if anything.
    """

    path: str
    idle: bool
    reason: str
    remedy: str = ""


def refuse_idle(needs: Iterable[Need], given: Collection[str]) -> None:
    """Refuse settings that were given and have no effect.

    Only what was given counts, whatever its value: a file may contain all settings.

    Args:
        needs: the settings that need something else; of one setting, the first that is idle is named.
        given: dotted paths of the settings that were given, those within others in full.

    Raises:
        SettingsError: at least one has no effect.

    >>> refuse_idle([Need("fit", True, "on text")], ["fit.warmup", "fitness"])
    Traceback (most recent call last):
    secateur.settings.SettingsError: fit.warmup: no effect on text; leave fit.warmup out
    """
    idle: dict[str, str] = {}
    for need in needs:
        for path in sorted(given):
            if need.idle and f"{path}.".startswith(f"{need.path}."):
                remedy = f"{need.remedy}, or " if need.remedy else ""
                idle.setdefault(path, f"no effect {need.reason}; {remedy}leave {path} out")
    if idle:
        raise SettingsError(idle.items())


def merged(base: Any, changes: Any) -> Any:
    """Merge nested changes into settings or into a table; values that are not tables replace the old ones.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    if not (isinstance(base, Settings | Mapping) and isinstance(changes, Mapping)):
        return changes
    values: dict[str, Any] = dict(base)
    return values | {name: merged(values.get(name), value) for name, value in changes.items()}


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """List the dotted path of each wrong value and what is wrong with it.

    Args:
        error: the error of pydantic.
        model: the class that was called, whose fields are suggested for misspelt names.
    """
    return [_mistake(dict(item), model) for item in error.errors(include_url=False)]


def _mistake(item: dict[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    names = [part for part in item["loc"] if isinstance(part, int) or part.replace("_", "a").isalnum()]
    path = ".".join(map(str, names))
    if item["type"] == "extra_forbidden":
        return path, f"unknown{_suggestion(names, model)}"
    if item["type"] == "missing":
        return path, "is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error" or not path:  # Secateur's own messages contain the value already
        return path, message
    return path, f"{message} (is {item['input']!r})"


def _suggestion(names: list[Any], model: type[BaseModel]) -> str:
    for name in names[:-1]:
        inner = settings_in(model.model_fields[name].annotation) if name in model.model_fields else None
        if inner is None:
            return ""
        model = inner
    start = "".join(f"{name}." for name in names[:-1])
    paths = {field: start + field for field in model.model_fields}
    return suggestion(str(names[-1]), [start + path for path in setting_paths(model)], paths)


def suggestion(name: str, paths: Iterable[str], names: Collection[str]) -> str:
    """Suggest a setting for an unknown name: inside other settings, or of a similar name; or list all.

    Args:
        name: the unknown name.
        paths: the dotted paths of all settings.
        names: the names that can stand here, as for :func:`secateur.errors.closest_or_all`.

    >>> suggestion("epochs", ["fit.epochs", "seed"], ["fit", "seed"])
    "; did you mean 'fit.epochs'?"
    """
    inside = [repr(path) for path in paths if path.endswith(f".{name}")]
    return f"; did you mean {' or '.join(inside[:3])}?" if inside else closest_or_all(name, names)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the dotted path and value of every entry of a table that is not a table itself.

    >>> list(flatten({"fit": {"epochs": 3, "options": {}}, "seed": 0}))
    [('fit.epochs', 3), ('fit.options', {}), ('seed', 0)]
    """
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def without(table: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Copy a table, and leave out the entries that dotted paths name.

    >>> without({"fit": {"epochs": 3, "warmup": 0.1}, "seed": 0}, ["fit.warmup", "seed"])
    {'fit': {'epochs': 3}}
    """
    inner = {path.partition(".")[0]: set[str]() for path in paths}
    for path in paths:
        name, dot, rest = path.partition(".")
        if dot:
            inner[name].add(rest)
    return {
        name: without(value, inner[name]) if inner.get(name) and isinstance(value, Mapping) else value
        for name, value in table.items()
        if name not in paths
    }


def setting_paths(model: type[BaseModel]) -> Iterator[str]:
    """List the dotted paths of all settings, those inside others included.

    >>> from secateur.training.settings import FitSettings
    >>> [path for path in setting_paths(FitSettings) if "rate" in path]
    ['optimizer.learning_rate']
    """
    for name, field in model.model_fields.items():
        yield name
        inner = settings_in(field.annotation)
        if inner is not None:
            yield from (f"{name}.{path}" for path in setting_paths(inner))


def settings_in(annotation: Any) -> type[Settings] | None:
    """Return the class of settings that an annotation holds, if any."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Settings)), None)
