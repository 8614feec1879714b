from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import benchmark, run
from benchmarks.benchmark import Benchmark
from benchmarks.images import data_path
from benchmarks.results import read
from benchmarks.tables import Table
from benchmarks.timing import interleaved


class Options(benchmark.Options):
    upto: int = 3
    label: str = ""


class Row(benchmark.Row):
    number: int


def counted(options):
    """Yield numbers; stop as Ctrl-C would where there is a file in the way."""
    for number in range(options.upto):
        if options.measured(number=number):
            continue
        measured.append(number)
        if number in stops:
            raise KeyboardInterrupt
        yield Row(number=number)


measured: list[int] = []
stops: set[int] = set()


@pytest.fixture
def counting(tmp_path, monkeypatch):
    measured.clear()
    stops.clear()
    made = Benchmark(
        name="counting",
        title="Counting",
        text="",
        options=Options,
        row=Row,
        cases={"two": {"upto": 2, "seeds": (3, 4)}},
        quick={"upto": 1},
        run=counted,
        table=lambda rows: Table(("number",), [(str(row.number),) for row in rows]),
    )
    monkeypatch.setattr(run, "load", lambda name: made)
    monkeypatch.setattr(run, "UNPUBLISHED", tmp_path / "runs")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    return SimpleNamespace(benchmark=made, results=tmp_path / "results", unpublished=tmp_path / "runs")


def test_a_run_writes_what_it_measured_and_how(counting):
    path = run.measure("counting", "two", [], quick=False)
    result = read(path)
    assert path == counting.results / "counting.two.json"
    assert result.rows == [{"number": 0}, {"number": 1}]
    assert result.command == "python -m benchmarks run counting --case two"
    assert (result.seeds, result.transcribed, result.title) == ((3, 4), False, "two")
    assert result.machine.cores >= 1
    assert list(counting.unpublished.iterdir()) == []


def test_a_quick_run_publishes_nothing(counting):
    path = run.measure("counting", "", ["label=a b"], quick=True)
    assert path == counting.unpublished / "counting.quick.json"
    assert read(path).command == "python -m benchmarks run counting --quick --set 'label=a b'"
    assert not counting.results.exists()


def test_an_interrupted_run_goes_on(counting):
    stops.add(2)
    with pytest.raises(KeyboardInterrupt):
        run.measure("counting", "", [], quick=False)
    assert not counting.results.exists()
    stops.clear()
    path = run.measure("counting", "", [], quick=False)
    assert measured == [0, 1, 2, 2]
    assert [row["number"] for row in read(path).rows] == [0, 1, 2]


def test_rows_of_other_options_do_not_count(counting):
    stops.add(2)
    with pytest.raises(KeyboardInterrupt):
        run.measure("counting", "", [], quick=False)
    stops.clear()
    run.measure("counting", "", ["label=other"], quick=False)
    assert measured == [0, 1, 2, 0, 1, 2]


def test_a_title_given_by_hand_stays(counting):
    path = run.measure("counting", "", [], quick=False)
    known = read(path).model_copy(update={"title": "Numbers"})
    path.write_text(known.model_dump_json())
    run.measure("counting", "", [], quick=False)
    assert read(path).title == "Numbers"


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("three", [], "no case three; there are: two"),
        ("", ["upto"], "--set upto: write NAME=VALUE"),
        ("", ["upto=many"], "upto: .*Options are: seeds, threads, keep_memory, upto, label"),
        ("", ["size=1"], "size: Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_are_named(counting, case, settings, message):
    with pytest.raises(SystemExit, match=message):
        run.chosen(counting.benchmark, case, settings, quick=False)


def test_an_unknown_benchmark_is_named_with_those_there_are():
    with pytest.raises(SystemExit, match="no such benchmark; there are: .*surgery"):
        benchmark.load("surgeries")


@pytest.mark.parametrize("name", benchmark.names())
def test_every_case_of_every_benchmark_has_valid_options(name):
    loaded = benchmark.load(name)
    assert loaded.title
    for case in ("", *loaded.cases):
        for quick in (False, True):
            options = run.chosen(loaded, case, [], quick=quick)
            assert json.loads(options.model_dump_json())


def test_the_data_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    with pytest.raises(SystemExit, match="set SECATEUR_DATA"):
        data_path("cifar10")
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="cifar10 does not exist"):
        data_path("cifar10")
    (tmp_path / "cifar10").mkdir()
    assert data_path("cifar10") == tmp_path / "cifar10"


def test_compared_runs_alternate():
    order = []
    times = iter(range(6))

    def action(name):
        return lambda: order.append(name) or float(next(times))

    assert interleaved({"a": action("a"), "b": action("b")}, 3) == {"a": 2.0, "b": 3.0}
    assert order == ["a", "b"] * 3


def test_a_small_benchmark_runs_through_the_driver(tmp_path, capsys):
    path = run.measure("planning", "", ["rounds=1"], quick=True, out=tmp_path / "planning.json")
    [row] = read(path).rows
    assert row["network"] == "squeezenet1_1"
    assert 0 < row["macs"] < 60
    assert "| squeezenet1_1 |" in capsys.readouterr().out
