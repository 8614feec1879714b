from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.costs import Cost, CostModelBuilder, readable

EXTENT = st.tuples(st.integers(0, 5), st.dictionaries(st.integers(0, 3), st.integers(0, 4), max_size=3))
TERM = st.tuples(st.integers(0, 50), st.lists(st.integers(0, 4), max_size=3))


@given(
    extents=st.lists(EXTENT, min_size=5, max_size=5),
    terms=st.lists(st.tuples(st.sampled_from(["params", "macs", "bytes"]), TERM), max_size=8),
    values=st.lists(TERM, min_size=1, max_size=5),
    points=st.lists(st.sets(st.integers(0, 4)), max_size=4),
    widths=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=3),
)
def test_compiled_costs_equal_plain_sums(extents, terms, values, points, widths):
    builder = CostModelBuilder(groups=4)
    numbers = [builder.extent(constant, multiples) for constant, multiples in extents]
    for kind, (coefficient, factors) in terms:
        getattr(builder, kind)(coefficient, [numbers[factor] for factor in factors])
    ids = [builder.value(c, [numbers[factor] for factor in factors]) for c, factors in values]
    points = [[ids[place] for place in point if place < len(ids)] for point in points]
    builder.live(points)
    found = builder.build().evaluate(np.array(widths))
    for row, width in zip(found, widths, strict=True):
        size = [c + sum(count * width[group] for group, count in m.items()) for c, m in extents]
        product = [c * math.prod(size[factor] for factor in factors) for c, factors in values]
        for column, kind in enumerate(("params", "macs", "bytes")):
            expected = sum(c * math.prod(size[f] for f in factors) for k, (c, factors) in terms if k == kind)
            assert row[column] == expected
        assert row[3] == max((sum(product[number] for number in set(point)) for point in points), default=0)


def test_a_batch_of_widths_keeps_its_shape():
    builder = CostModelBuilder(groups=1)
    builder.macs(2, [builder.extent(1, {0: 3})])
    assert builder.build().evaluate(np.ones((2, 5, 1), dtype=np.int64)).shape == (2, 5, 4)


def test_large_costs_stay_exact():
    builder = CostModelBuilder(groups=1)
    width = builder.extent(0, {0: 1})
    builder.macs(3**20, [width, width])
    assert builder.build().evaluate(np.array([12_345]))[1] == 3**20 * 12_345**2


def test_costs_read_well():
    assert str(Cost(11_689_512, 1_814_073_344, 46_796_608, 6_422_528)) == (
        "11.7 M parameters, 1.81 G MACs, 46.8 MB, activations 6.42 MB"
    )
    assert readable(999) == "999 "
    assert Cost(1, 2, 3, 4).share_of(Cost(2, 2, 6, 0)) == {
        "params": 0.5,
        "macs": 1.0,
        "bytes": 0.5,
        "memory": 4.0,
    }
