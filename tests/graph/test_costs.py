from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UsageError
from secateur.graph.costs import Cost, CostModel, CostModelBuilder

PlainTerm = tuple[int, list[int]]


@dataclass
class Recipe:
    """The terms of a cost model, and their value by plain Python arithmetic."""

    groups: int
    extents: list[tuple[int, dict[int, int]]]
    terms: dict[str, list[PlainTerm]]
    values: list[PlainTerm]
    points: list[list[int]] = field(default_factory=list)

    def build(self) -> CostModel:
        builder = CostModelBuilder(self.groups)
        ids = [builder.extent(constant, widths) for constant, widths in self.extents]
        for kind, terms in self.terms.items():
            for coefficient, factors in terms:
                getattr(builder, kind)(coefficient, [ids[factor] for factor in factors])
        values = [
            builder.value(coefficient, [ids[factor] for factor in factors])
            for coefficient, factors in self.values
        ]
        builder.live([[values[value] for value in point] for point in self.points])
        return builder.build()

    def expected(self, widths: list[int]) -> list[int]:
        sizes = [
            constant + sum(count * widths[group] for group, count in slots.items())
            for constant, slots in self.extents
        ]

        def term(coefficient: int, factors: list[int]) -> int:
            return coefficient * math.prod(sizes[factor] for factor in factors)

        totals = [sum(term(*part) for part in self.terms[kind]) for kind in ("params", "macs", "bytes")]
        alive = [sum(term(*self.values[value]) for value in point) for point in self.points]
        return [*totals, max(alive, default=0)]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    groups = draw(st.integers(1, 4))
    slots = st.dictionaries(st.integers(0, groups - 1), st.integers(0, 6), max_size=3)
    extents = draw(st.lists(st.tuples(st.integers(0, 12), slots), min_size=1, max_size=6))
    term = st.tuples(st.integers(0, 50), st.lists(st.integers(0, len(extents) - 1), max_size=4))
    values = draw(st.lists(term, min_size=1, max_size=5))
    points = draw(st.lists(st.lists(st.integers(0, len(values) - 1), max_size=6), max_size=5))
    terms = {kind: draw(st.lists(term, max_size=6)) for kind in ("params", "macs", "bytes")}
    return Recipe(groups, extents, terms, values, points)


@given(recipes(), st.data())
def test_equals_plain_arithmetic(recipe: Recipe, data: st.DataObject):
    batch = data.draw(
        st.lists(st.lists(st.integers(0, 40), min_size=recipe.groups, max_size=recipe.groups), max_size=4)
    )
    widths = np.array(batch, dtype=np.int64).reshape(-1, recipe.groups)
    costs = recipe.build().evaluate(widths)
    assert costs.dtype == np.int64
    assert costs.tolist() == [recipe.expected(row) for row in batch]


@given(recipes(), st.data())
def test_never_grows_when_a_width_shrinks(recipe: Recipe, data: st.DataObject):
    wide = np.array(data.draw(st.tuples(*[st.integers(0, 30)] * recipe.groups)))
    narrow = np.array([data.draw(st.integers(0, int(width))) for width in wide])
    model = recipe.build()
    assert (model.evaluate(narrow) <= model.evaluate(wide)).all()


def test_batches_of_any_shape():
    recipe = Recipe(
        2, [(1, {0: 3}), (0, {1: 1})], {"params": [(2, [0, 1])], "macs": [], "bytes": []}, [(1, [])]
    )
    model = recipe.build()
    widths = np.arange(24).reshape(3, 4, 2)
    costs = model.evaluate(widths)
    assert costs.shape == (3, 4, 4)
    assert costs[2, 1].tolist() == recipe.expected(widths[2, 1].tolist())
    assert model.evaluate([5, 7]).tolist() == [2 * 16 * 7, 0, 0, 0]
    assert model.evaluate(np.empty((0, 2), dtype=np.int64)).shape == (0, 4)
    assert model.cost([5, 7]) == Cost(params=224, macs=0, bytes=0, memory=0)


def test_integers_are_exact_beyond_floats():
    builder = CostModelBuilder(1)
    width = builder.extent(1, {0: 1})
    builder.macs(3, [width, width, width])
    assert builder.build().evaluate([2**20]).tolist()[1] == 3 * (2**20 + 1) ** 3


def test_equal_extents_and_products_are_stored_once():
    builder = CostModelBuilder(2)
    wide, narrow, pair = (
        builder.extent(0, {0: 49}),
        builder.extent(0, {0: 1}),
        builder.extent(0, {0: 1, 1: 1}),
    )
    for extent in (wide, narrow):
        builder.params(1, [extent, pair])
        builder.macs(5, [pair, extent])
    model = builder.build()
    assert model.factors.shape == (1, 2)
    assert len(model.constants) == 3  # one, the width of group 0, the two widths together
    assert model.evaluate([2, 3]).tolist() == [50 * 2 * 5, 5 * 50 * 2 * 5, 0, 0]


def test_a_model_without_terms_costs_nothing():
    assert CostModelBuilder(0).build().cost(np.empty(0, dtype=np.int64)) == Cost(0, 0, 0, 0)


def test_many_blocks_agree_with_single_evaluations(monkeypatch: pytest.MonkeyPatch):
    builder = CostModelBuilder(3)
    widths = [builder.extent(2, {group: 3}) for group in range(3)]
    for first in widths:
        builder.value(4, [first])
        builder.macs(7, [first, widths[0]])
    builder.live([[0, 1], [1, 2]])
    model, batch = builder.build(), np.arange(60).reshape(20, 3)
    whole = model.evaluate(batch)
    monkeypatch.setattr("secateur.graph.costs._BLOCK", 8)
    assert np.array_equal(whole, model.evaluate(batch))


@pytest.mark.parametrize("widths", [[1.0, 2.0], [1, 2, 3], 4])
def test_widths_that_do_not_fit(widths: object):
    with pytest.raises(UsageError, match=r"integers of shape \(\.\.\., 2\)"):
        CostModelBuilder(2).build().evaluate(widths)  # type: ignore[arg-type]


def test_negative_parts_are_refused():
    builder = CostModelBuilder(2)
    for constant, slots in [(-1, {}), (0, {0: -1}), (0, {2: 1}), (0, {-1: 1})]:
        with pytest.raises(UsageError, match="Not the size of a dimension"):
            builder.extent(constant, slots)
    with pytest.raises(UsageError, match="no coefficient is negative"):
        builder.params(-1, [])


def test_cost_reads_well():
    cost = Cost(params=11_689_512, macs=1_814_073_344, bytes=46_839_840, memory=850)
    assert str(cost) == "11.7 M parameters, 1.81 G MACs, 46.8 MB, activations 850 B"


def test_a_large_model_in_one_batch_is_as_row_by_row():
    groups, terms, batch = 300, 1000, 20
    rng = np.random.default_rng(0)
    builder = CostModelBuilder(groups)
    ids = [builder.extent(int(rng.integers(3)), {group: 1}) for group in range(groups)]
    values = []
    for first, second in rng.integers(groups, size=(terms, 2)):
        builder.macs(9, [ids[first], ids[second]])
        builder.params(9, [ids[first], ids[second]])
        values.append(builder.value(4, [ids[first]]))
    builder.live(values[start : start + 4] for start in range(0, terms, 2))
    model = builder.build()
    widths = rng.integers(1, 512, size=(batch, groups))
    rows = [model.evaluate(width) for width in widths]
    np.testing.assert_array_equal(model.evaluate(widths), np.stack(rows))
