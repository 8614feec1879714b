"""What a module of ``benchmarks/suite`` provides, and how it is loaded."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from benchmarks import suite
from benchmarks.tables import Table


class Row(BaseModel):
    """Base class of one measured row: flat, with plain values, so that it is stored as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(BaseModel):
    """Base class of the options of a benchmark.

    Attributes:
        seeds: of everything that is drawn at random; benchmarks of accuracy repeat themselves for each.
        threads: CPU threads of PyTorch within an operator.
        keep_memory: keep freed memory in the process, as all commands of ``secateur`` do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seeds: tuple[int, ...] = (0,)
    threads: int = 1
    keep_memory: bool = False
    _earlier: list[Row] = PrivateAttr(default_factory=list)

    def resume(self, rows: Sequence[Row]) -> None:
        """Give the rows of an interrupted run with the same options, which are not measured again."""
        self._earlier.extend(rows)

    def measured(self, **values: object) -> bool:
        """Return whether an interrupted run has a row with these values."""
        return any(
            all(getattr(row, name) == value for name, value in values.items()) for row in self._earlier
        )


@dataclass(frozen=True)
class Benchmark:
    """A loaded benchmark.

    Attributes:
        name: of its module and of its result files.
        title: first line of the module's docstring, without the full stop.
        text: the rest of the docstring: what is measured, and against what.
        options: class of its options.
        row: class of its rows.
        cases: options of the published runs, by the name of the case.
        quick: options that make it finish within a minute or so, to see that it works.
        run: measures and yields rows.
        table: makes a table of rows.
    """

    name: str
    title: str
    text: str
    options: type[Options]
    row: type[Row]
    cases: Mapping[str, Mapping[str, Any]]
    quick: Mapping[str, Any]
    run: Callable[[Any], Iterator[Row]]
    table: Callable[[Any], Table]


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(module.name for module in pkgutil.iter_modules(suite.__path__))


def load(name: str) -> Benchmark:
    """Import a benchmark by its name.

    Raises:
        SystemExit: there is none of this name.
    """
    if name not in names():
        raise SystemExit(f"{name}: no such benchmark; there are: {', '.join(names())}")
    module = importlib.import_module(f"{suite.__name__}.{name}")
    title, _, text = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return Benchmark(
        name=name,
        title=title.rstrip("."),
        text=text.strip(),
        options=module.Options,
        row=module.Row,
        cases=module.CASES,
        quick=module.QUICK,
        run=module.run,
        table=module.table,
    )
