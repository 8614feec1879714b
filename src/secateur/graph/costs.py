"""Compute what a network needs, exactly, as a function of the widths of its channel groups.

The size of every dimension of every tensor is a constant plus a sum of group widths: an
*extent*. Parameters and multiply-accumulates are sums of products of extents, and the
activation memory is the largest of several such sums, one for each point of the forward pass.
So the cost of any plan follows from its widths alone, in integers, without running the model.

A residual branch counts as a further width, 1 where it is present and 0 where it is absent: an
*indicator*. What only the branch needs is multiplied by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod

import numpy as np
import numpy.typing as npt
from scipy import sparse

from secateur.errors import UsageError
from secateur.formats import count, size
from secateur.graph.groups import IntArray

_BLOCK = 1 << 18  # numbers that are worked on at once: few enough to stay in a processor's cache


@dataclass(frozen=True)
class Cost:
    """What a network needs for the inputs that it was traced with.

    Attributes:
        params: numbers in all parameters (a tensor that is shared counts once).
        macs: multiply-accumulates of one forward pass, for one example of the batch. A
            multiplication with its addition is one MAC; biases, normalisation, activations
            and pooling count nothing.
        bytes: size of all parameters and buffers.
        memory: peak of the activations that are alive at the same time in a forward pass
            without gradients, operator by operator, in bytes, for the whole batch: the inputs, which the
            caller holds, what each module was handed, and the outputs.

    Example:
        >>> print(Cost(11_689_512, 1_814_073_344, 46_839_840, 12_300_000))
        11.7 M parameters, 1.81 G MACs, 46.8 MB, activations 12.3 MB
    """

    params: int
    macs: int
    bytes: int
    memory: int

    def __str__(self) -> str:
        return (
            f"{count(self.params)} parameters, {count(self.macs)} MACs, "
            f"{size(self.bytes)}, activations {size(self.memory)}"
        )


class CostModelBuilder:
    """Gathers the terms of a cost model.

    Extents that are equal up to a factor, and products of the same extents, are stored once.

    Args:
        groups: number of channel groups.
        branches: number of residual branches.

    Example:
        A convolution from group 0 (two slots a channel) to group 1, 3 × 3 weights, 10 × 10 positions:

        >>> builder = CostModelBuilder(groups=2)
        >>> fan_in, fan_out = builder.extent(0, {0: 2}), builder.extent(0, {1: 1})
        >>> builder.params(9, [fan_in, fan_out])
        >>> builder.macs(900, [fan_in, fan_out])
        >>> builder.bytes(36, [fan_in, fan_out])
        >>> before, after = builder.value(400, [fan_in]), builder.value(400, [fan_out])
        >>> builder.live([[before, after]])
        >>> print(builder.build().cost([8, 16]))
        2.30 k parameters, 230 k MACs, 9.22 kB, activations 12.8 kB
    """

    def __init__(self, groups: int, branches: int = 0) -> None:
        self._groups = groups
        self._branches = branches
        self._ids: list[tuple[int, int]] = []  # extent id -> (factor, primitive extent)
        # Primitive extents and products of them, numbered in order of appearance. The first
        # primitive extent is the number one, which fills up the shorter products.
        self._extents: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {(1, ()): 0}
        self._products: dict[tuple[int, ...], int] = {}
        self._totals: tuple[Counter[int], Counter[int], Counter[int]] = (Counter(), Counter(), Counter())
        self._values: list[tuple[int, int]] = []  # value id -> (coefficient, product)
        self._points: dict[tuple[tuple[int, int], ...], None] = {}
        self._indicators: set[int] = set()  # primitive extents that are 0 or 1

    def extent(self, constant: int, widths: Mapping[int, int] | None = None) -> int:
        """Declare the size of a dimension.

        Args:
            constant: the part that no channel group owns.
            widths: for each group index that owns a part, the slots per channel.

        Returns:
            The id of the extent.

        Raises:
            UsageError: if a number is negative or a group index is out of range.
        """
        slots = tuple(sorted((group, count) for group, count in (widths or {}).items() if count))
        if constant < 0 or any(count < 0 or not 0 <= group < self._groups for group, count in slots):
            raise UsageError(
                f"Not the size of a dimension: {constant} + {dict(slots)}, with {self._groups} groups"
            )
        return self._declared(constant, slots)

    def present(self, branch: int) -> int:
        """Declare a factor that is 1 where a branch (given by index) is present, and 0 elsewhere.

        Returns:
            Its id, which may be used like that of an extent.
        """
        return self._indicator(0, branch, 1)

    def absent(self, branch: int) -> int:
        """Declare a factor that is 1 where a branch (given by index) is absent, and 0 elsewhere.

        Returns:
            Its id, which may be used like that of an extent.
        """
        return self._indicator(1, branch, -1)

    def _indicator(self, constant: int, branch: int, sign: int) -> int:
        if not 0 <= branch < self._branches:
            raise UsageError(f"there is no branch {branch} among {self._branches}")
        number = self._declared(constant, ((self._groups + branch, sign),))
        self._indicators.add(self._ids[number][1])
        return number

    def _declared(self, constant: int, slots: tuple[tuple[int, int], ...]) -> int:
        factor = gcd(constant, *(count for _, count in slots)) or 1
        primitive = (constant // factor, tuple((column, count // factor) for column, count in slots))
        self._ids.append((factor, self._extents.setdefault(primitive, len(self._extents))))
        return len(self._ids) - 1

    def params(self, coefficient: int, extents: Sequence[int]) -> None:
        """Add ``coefficient`` × the product of the extents (given by id) to the parameters."""
        self._add(0, coefficient, extents)

    def macs(self, coefficient: int, extents: Sequence[int]) -> None:
        """Add ``coefficient`` × the product of the extents (given by id) to the MACs."""
        self._add(1, coefficient, extents)

    def bytes(self, coefficient: int, extents: Sequence[int]) -> None:
        """Add ``coefficient`` × the product of the extents (given by id) to the bytes."""
        self._add(2, coefficient, extents)

    def value(self, coefficient: int, extents: Sequence[int]) -> int:
        """Declare an activation of ``coefficient`` × the product of the extents bytes.

        Returns:
            The id of the value, for ``live``.
        """
        self._values.append(self._term(coefficient, extents))
        return len(self._values) - 1

    def live(self, points: Iterable[Sequence[int]]) -> None:
        """Declare which values (by id) are alive together, for each point of the forward pass."""
        for values in points:
            sizes: Counter[int] = Counter()
            for value in values:
                coefficient, product = self._values[value]
                sizes[product] += coefficient
            self._points[tuple(sorted(sizes.items()))] = None

    def build(self) -> CostModel:
        """Compile the cost model."""
        degree = max((len(product) for product in self._products), default=0)
        factors = [product + (0,) * (degree - len(product)) for product in self._products]
        totals = [list(total.items()) for total in self._totals]
        return CostModel(
            groups=self._groups,
            branches=self._branches,
            slots=_matrix([slots for _, slots in self._extents], self._groups + self._branches),
            constants=np.array([constant for constant, _ in self._extents], dtype=np.int64),
            factors=np.array(factors, dtype=np.int64).reshape(len(factors), degree),
            totals=_matrix(totals, len(factors)),
            points=_matrix([(), *self._points], len(factors)),
        )

    def _add(self, quantity: int, coefficient: int, extents: Sequence[int]) -> None:
        coefficient, product = self._term(coefficient, extents)
        self._totals[quantity][product] += coefficient

    def _term(self, coefficient: int, extents: Sequence[int]) -> tuple[int, int]:
        """Return the coefficient, with constant factors, and the number of the product of the rest.

        A product contains an indicator once, since its square is the indicator itself.
        """
        if coefficient < 0:
            raise UsageError(
                f"A cost cannot shrink as widths grow, so no coefficient is negative: {coefficient}"
            )
        parts = [self._ids[extent] for extent in extents]
        extents_left = [extent for _, extent in parts if extent and extent not in self._indicators]
        indicators = {extent for _, extent in parts if extent in self._indicators}
        product = tuple(sorted([*extents_left, *indicators]))
        number = self._products.setdefault(product, len(self._products))
        return coefficient * prod(factor for factor, _ in parts), number


@dataclass(frozen=True, eq=False)
class CostModel:
    """The cost of a network as an exact function of its group widths; made by ``CostModelBuilder``.

    Costs never grow when the width of a group shrinks. Amounts up to 9.2e18 are exact.

    Attributes:
        groups: number of channel groups, G.
        slots: slots per channel of each group, then the weight of each branch's indicator, in each extent,
            shape (extents, G + B).
        constants: the part of each extent that no group owns, shape (extents,).
        factors: the extents that are multiplied, shape (products, largest degree).
        totals: coefficients of parameters, MACs and bytes, shape (3, products).
        points: coefficients of the bytes alive at each point, shape (points, products).
        branches: number of residual branches, B.
    """

    groups: int
    slots: sparse.csr_array
    constants: IntArray
    factors: IntArray
    totals: sparse.csr_array
    points: sparse.csr_array
    branches: int = 0

    def evaluate(self, widths: npt.ArrayLike) -> IntArray:
        """Compute costs for many choices of widths at once.

        Args:
            widths: channels in each group, then 1 for each branch that is present and 0 for each other one;
                integers of shape ``(..., groups + branches)``.

        Returns:
            Parameters, MACs, bytes and memory as in ``Cost``, int64 of shape ``(..., 4)``.

        Raises:
            UsageError: if the widths are not integers or their last dimension has another size.
        """
        array = np.asarray(widths)
        columns = self.groups + self.branches
        if array.shape[-1:] != (columns,) or not np.issubdtype(array.dtype, np.integer):
            raise UsageError(
                f"Widths must be integers of shape (..., {columns}), not {array.dtype} {array.shape}"
            )
        rows = array.reshape(prod(array.shape[:-1]), columns).T.astype(np.int64)
        step = max(1, _BLOCK // max(1, len(self.factors), len(self.constants)))
        result = np.empty((4, rows.shape[1]), dtype=np.int64)
        for start in range(0, rows.shape[1], step):
            part = slice(start, start + step)
            products = self._products(np.ascontiguousarray(rows[:, part]))
            result[:3, part] = self.totals @ products
            result[3, part] = (self.points @ products).max(axis=0)
        return result.T.reshape(*array.shape[:-1], 4)

    def cost(self, widths: npt.ArrayLike) -> Cost:
        """Compute the cost for one choice of widths, integers of shape ``(groups + branches,)``."""
        params, macs, size, memory = (int(number) for number in self.evaluate(widths))
        return Cost(params, macs, size, memory)

    def with_branches(self, present: npt.ArrayLike) -> CostModel:
        """Return the costs as a function of the group widths alone, for given branches.

        Args:
            present: 1 or 0 for each branch, shape ``(branches,)``.

        Example:
            Weights of group 0, and as many that only a branch has:

            >>> builder = CostModelBuilder(groups=1, branches=1)
            >>> width = builder.extent(0, {0: 1})
            >>> builder.params(9, [width])
            >>> builder.params(9, [width, builder.present(0)])
            >>> model = builder.build()
            >>> model.with_branches([1]).cost([4]).params, model.with_branches([0]).cost([4]).params
            (72, 36)
        """
        if not self.branches:
            return self
        slots = self.slots[:, : self.groups]
        constants = self.constants + self.slots[:, self.groups :] @ np.asarray(present, dtype=np.int64)
        fixed = np.diff(slots.indptr) == 0
        # Factors of one are dropped, products with a factor of zero too, and equal products are merged.
        factors = np.sort(np.where((fixed & (constants == 1))[self.factors], 0, self.factors), axis=1)
        counts = np.flatnonzero(~(fixed & (constants == 0))[self.factors].any(axis=1))
        merged, place = np.unique(factors[counts], axis=0, return_inverse=True)
        place = place.reshape(-1)
        to_merged = sparse.csr_array(
            (np.ones(len(counts), dtype=np.int64), (counts, place)), shape=(len(factors), len(merged))
        )
        used = merged.any(axis=0)
        points = _distinct_rows((self.points @ to_merged).tocsr())
        return CostModel(
            groups=self.groups,
            slots=slots,
            constants=constants,
            factors=merged[:, used],
            totals=(self.totals @ to_merged).tocsr(),
            points=_matrix(points, len(merged)),
        )

    def _products(self, columns: IntArray) -> IntArray:
        extents = self.slots @ columns + self.constants[:, None]
        products = np.ones((len(self.factors), columns.shape[1]), dtype=np.int64)
        for factor in self.factors.T:
            products *= extents[factor]
        return products


def _distinct_rows(matrix: sparse.csr_array) -> list[tuple[tuple[int, int], ...]]:
    """List the distinct rows of a sparse matrix as (column, number) pairs."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    cells = list(zip(matrix.indices.tolist(), matrix.data.tolist(), strict=True))
    return list(dict.fromkeys(tuple(cells[start:end]) for start, end in pairwise(matrix.indptr.tolist())))


def _matrix(rows: Sequence[Sequence[tuple[int, int]]], width: int) -> sparse.csr_array:
    """Build a sparse integer matrix from (column, number) pairs, row by row."""
    cells = [cell for row in rows for cell in row]
    columns = np.array([column for column, _ in cells], dtype=np.int64)
    numbers = np.array([number for _, number in cells], dtype=np.int64)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    return sparse.csr_array((numbers, columns, ends), shape=(len(rows), width))
