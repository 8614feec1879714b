"""Provide the base of all settings: immutable, checked as a whole, with errors that name every mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import UsageError, closest

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _RaisesUsageError(ModelMetaclass):
    """Let a class raise ``UsageError`` when it is called with wrong values.

    A metaclass, because an error raised in ``__init__`` would hide the other mistakes and the path where
    settings contain settings.
    """

    def __call__(cls: Any, *args: Any, **values: Any) -> Any:  # noqa: N805
        try:
            return ModelMetaclass.__call__(cls, *args, **values)
        except ValidationError as error:
            raise UsageError(describe(error, cls)) from None


class Settings(BaseModel, metaclass=_RaisesUsageError):
    """Immutable settings that refuse unknown names.

    Raises:
        UsageError: at least one value is wrong; the message names all of them, with a dotted path.

    >>> class Rate(Settings):
    ...     steps: int = 1
    ...     decay: float = 0.5
    >>> Rate(steps="two", decai=0.1)
    Traceback (most recent call last):
    secateur.errors.UsageError: steps: Input should be a valid integer, unable to parse string as an integer \
(is 'two'); decai: unknown; did you mean 'decay'?
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe everything that is wrong in one line.

    Args:
        error: what pydantic raised.
        model: the class that was called, whose fields are suggested for misspelt names.
    """
    return "; ".join(_line(dict(item), model) for item in error.errors(include_url=False))


def _line(item: dict[str, Any], model: type[BaseModel]) -> str:
    names = [part for part in item["loc"] if isinstance(part, int) or part.replace("_", "a").isalnum()]
    where = ".".join(map(str, names))
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown{_suggestion(names, model)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own words, which say what the value is
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (is {item['input']!r})" if where else message


def _suggestion(names: list[Any], model: type[BaseModel]) -> str:
    for name in names[:-1]:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return ""
        model = inner[0]
    paths = {field: ".".join([*map(str, names[:-1]), field]) for field in model.model_fields}
    return closest(str(names[-1]), paths) or f"; choose one of {', '.join(model.model_fields)}"
