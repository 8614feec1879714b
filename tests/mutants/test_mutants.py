"""The harness itself: it breaks what it says, and it tells the outcomes apart."""

from __future__ import annotations

import copy
import fnmatch

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.graph.cutting.tensors import named_tensors
from tests.mutants import branches, judge, suite, trial
from tests.mutants.operators import Mutant, broken, mutants
from tests.mutants.run import results, table, unchecked
from tests.mutants.trial import COSTS, HANG, HARMLESS, STALE, TRACE, UNNOTICED, VERIFY, Prepared

pytestmark = pytest.mark.filterwarnings("ignore")

JOIN = "rules/linear.py:linear:*delete join: op.join(incoming*"
READ = "rules/linear.py:linear:*delete read: *"
NEIGHBOUR = "plan.py:PruningPlan.kept_slots:*cut the neighbour: *"
EXPECTED = {
    JOIN: TRACE,
    READ: TRACE,
    "rules/linear.py:linear:*roll labels: op.tie_parameter(*": TRACE,
    "rules/linear.py:linear:*delete attribute: *out_features*": STALE,
    "rules/linear.py:linear:*delete add_macs: *": COSTS,
    "rules/linear.py:linear:*delete set_role: *PRODUCER*": HARMLESS,
    "rules/convolution.py:convolution:*return the input: *": TRACE,
    "rules/normalisation.py:aten.layer_norm by the rule of aten.relu": TRACE,
    NEIGHBOUR: VERIFY,
}
"""What comes of some mutants, by patterns of their names."""

_LOADED = (sec.trace, sec.apply_plan, sec.verify)
OF_BRANCHES = mutants(files=branches.FILES)
"""Listed when this file is loaded: once the harness has frozen memory, functions are not found any more."""


@pytest.fixture(scope="module")
def networks() -> list[Prepared]:
    return [trial.prepare(name) for name in ("flattened", "layerscale")]


@pytest.fixture(scope="module")
def every(networks: list[Prepared]) -> list[Mutant]:
    return mutants(sorted({operator for network in networks for operator in network.operators}))


def named(every: list[Mutant], pattern: str) -> Mutant:
    return next(item for item in every if fnmatch.fnmatchcase(item.name, pattern.replace("[", "[[]")))


@pytest.mark.slow
def test_outcomes_are_told_apart(networks: list[Prepared], every: list[Mutant]) -> None:
    chosen = {named(every, pattern).name: wanted for pattern, wanted in EXPECTED.items()}
    found = list(results([named(every, pattern) for pattern in EXPECTED], networks))
    assert {item["name"]: item["outcome"] for item in found} == chosen


@pytest.mark.slow
def test_what_takes_too_long_is_ended(
    networks: list[Prepared], every: list[Mutant], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.01)
    [found] = results([named(every, JOIN)], networks)
    assert found["outcome"] == HANG
    assert table([found]).count("\n- hang: ") == 1


@pytest.mark.slow
def test_without_the_check_wrong_cuts_go_unnoticed(networks: list[Prepared], every: list[Mutant]) -> None:
    with unchecked():
        found = list(results([named(every, pattern) for pattern in (JOIN, READ, NEIGHBOUR)], networks))
    # Without its reader, a channel is still cut rightly: only the check would have missed it.
    assert [item["outcome"] for item in found] == [UNNOTICED, HARMLESS, UNNOTICED]


@pytest.mark.slow
def test_what_is_broken_is_whole_again(every: list[Mutant]) -> None:
    mutant = named(every, JOIN)
    model, inputs = suite.build("flattened")
    with broken(mutant):
        assert not sec.trace(model, inputs)["one"].prunable or not sec.trace(model, inputs)["conv"].prunable
    assert len(sec.trace(model, inputs).prunable) == 2


@pytest.mark.slow
def test_names_are_stable_and_distinct(every: list[Mutant]) -> None:
    names = [item.name for item in every]
    assert len(set(names)) == len(names) > 1000
    assert sorted({item.operator for item in every if item.operator})
    assert [item.name for item in mutants()] == [item.name for item in every if not item.operator]


def test_positions_are_told_by_the_numbers() -> None:
    old = torch.randn(4, 3)
    found = judge.positions({"a": old, "b": old}, {"a": old[[0, 3]][:, [1, 2]], "b": old + 1})
    assert found["a"] is not None
    assert [index.tolist() for index in found["a"]] == [[0, 3], [1, 2]]
    assert found["b"] is None


def test_a_judge_needs_no_check() -> None:
    model, inputs = suite.build("flattened")
    graph = sec.trace(model, inputs)
    small = sec.apply_plan(model, sec.PruningPlan(graph, {"one": (0, 4, 5)}))
    assert judge.judged(model, small, graph, inputs).answer == judge.RIGHT
    assert isinstance(small.one, nn.Linear)
    small.one.out_features = 11
    assert judge.judged(model, small, graph, inputs).answer == judge.STALE
    with torch.no_grad():
        named_tensors(small)["one.bias"].copy_(model.one.bias[:3])
    assert judge.judged(model, small, graph, inputs).answer == judge.WRONG


@pytest.mark.parametrize(("read", "answer"), [(0, judge.RIGHT), (1, judge.WRONG)])
def test_the_judge_accepts_another_right_cut(read: int, answer: str) -> None:
    """One place of every group goes, where the library lets whole groups go."""
    model, inputs = suite.build("grouped-groups")
    graph = sec.trace(model, inputs)
    small = copy.deepcopy(model)
    before, grouped = small.get_submodule("before"), small.get_submodule("grouped")
    kept = slice(0, None, 2)
    with torch.no_grad():
        before.weight, before.bias = nn.Parameter(before.weight[kept]), nn.Parameter(before.bias[kept])
        grouped.weight = nn.Parameter(grouped.weight[:, read : read + 1])
        before.out_channels = grouped.in_channels = 4
    assert judge.judged(model, small, graph, inputs).answer == answer


@pytest.mark.slow
def test_wrong_branches_are_noticed() -> None:
    networks = branches.cases()
    patterns = (
        "*branches.py:_replacement:*return*",
        "*substitutes.py:Zeros.forward:*",
        "*additions.py:Dataflow._cone:*",
        "*masked.py:_absent:*",
    )
    chosen = [next(item for item in OF_BRANCHES if fnmatch.fnmatchcase(item.name, one)) for one in patterns]
    found = [branches.tried(mutant, networks)[0] for mutant in chosen]
    assert branches.UNNOTICED not in found
    assert branches.CAUGHT in found
