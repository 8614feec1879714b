"""Keep the sizes in a network's code true after a cut.

Each size that an operator is given is the number of labels in a vector, or a constant. Where the
size comes from is an expression of attributes and of sizes of other tensors. Both sides are linear
forms in the channels, so an equation holds after every cut exactly if the two forms are equal.

Attributes are solved for first: an attribute that is the only unknown of an equation counts what
the equation leaves. Unequal vectors of one length are then joined, and what is still unequal is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.propagation.factors import Factor
from secateur.graph.propagation.findings import Attribute, Equation, Findings, Statistic
from secateur.graph.propagation.known_sizes import KnownSizes, Quotient, Solution
from secateur.graph.propagation.linear_forms import Form, apart, multiples
from secateur.graph.propagation.size_source import (
    Computed,
    FromAttribute,
    FromTensor,
    Source,
    attributes_in,
    parts_of,
)


def resolve_sizes(findings: Findings, slots: SlotTable, env: Mapping[Node, Any]) -> None:
    """Turn all sizes that were noted in propagation into equalities between labels.

    Args:
        findings: what propagation found; attributes that count label vectors are added.
        slots: the table that collects equalities.
        env: the value of every node.
    """
    if not (findings.equations or findings.factors or findings.comparisons):
        return
    # Collect what is given: equations, and attributes that rules have found.
    attributes = {found.key: found for found in _attributes(findings)}
    equations = _in_order(findings.equations)
    known = KnownSizes(
        slots=slots,
        values={node.name: value for node, value in env.items()},
        numbers={key: -1 - number for number, key in enumerate(attributes)},
        solutions={item.key: Solution(item.labels, "") for item in reversed(findings.attributes)},
    )
    found_before = set(known.solutions)
    for item in findings.attributes:
        _join(known.solutions[item.key].labels, item.labels, slots)
    _settle(equations, known)
    # Assume what the equations leave open, the most certain first: that attributes follow sizes that the code
    # found equal, that those of a class (such as an expansion) are constants, what a sum or a multiple of
    # attributes counts, and last that all others are constants.
    of_class = [found for found in attributes.values() if found.of_class]
    for assume in (
        partial(_follow_comparisons, findings.comparisons),
        partial(_assume_constant, of_class),
        partial(_guess, equations),
        partial(_assume_constant, attributes.values()),
    ):
        assume(known)
        _settle(equations, known)
    # Freeze what is still unequal.
    _freeze_unequal(equations, known)
    for factor in findings.factors:
        _keep_factor(factor, known, findings)
    findings.attributes += [
        Attribute(*key, solution.labels)
        for key, solution in known.solutions.items()
        if solution.labels is not None and key not in found_before
    ]


def _settle(equations: Sequence[Equation], known: KnownSizes) -> None:
    """Solve attributes and join sides in turns: what was joined cancels, and may leave one unknown."""
    before = -1
    while len(known.solutions) > before:
        before = len(known.solutions)
        _solve(equations, known)
        _join_sides(equations, known)


def _attributes(findings: Findings) -> Iterator[FromAttribute]:
    """List the attributes in the expressions of equations and factors."""
    for equation in findings.equations:
        yield from attributes_in(equation.source)
    for factor in findings.factors:
        yield from attributes_in(factor.source)


def _all(equations: Sequence[Equation], known: KnownSizes) -> Iterator[Equation | Quotient]:
    """Yield all equations, then the quotients, also those that are added during the iteration."""
    yield from equations
    yield from known.quotients


def _in_order(equations: Sequence[Equation]) -> list[Equation]:
    """Put attributes first, then sizes of tensors, then what is computed from them."""
    kinds = (FromAttribute, FromTensor, Computed)
    return [item for kind in kinds for item in equations if isinstance(item.source, kind)]


# -- attributes ----------------------------------------------------------------------------


def _solve(equations: Sequence[Equation], known: KnownSizes) -> None:
    """Solve equations with one unknown attribute until there are none."""
    before = (-1, -1)
    while (len(known.solutions), len(known.quotients)) != before:
        before = (len(known.solutions), len(known.quotients))
        for item in list(_all(equations, known)):
            if isinstance(item, Equation) and isinstance(item.source, FromAttribute):
                known.solutions.setdefault(item.source.key, Solution(item.labels, item.place))
                continue
            difference = _difference(item, known)
            if difference is None or len(difference.unknowns) != 1:
                continue
            number = difference.unknowns[0]
            weight, rest = difference.without(number)
            form = rest.times(-1 / weight)
            counts = form.counts()
            if counts is not None:
                labels = _every_nth(item, form, sum(counts), known)
                labels = _labels_of(form, counts, known.slots) if labels is None else labels
                known.solutions[known.attribute(number)] = Solution(labels, item.place)


def _every_nth(item: Equation | Quotient, form: Form, count: int, known: KnownSizes) -> Labels:
    """Take every n-th label of an equation, in their order, if that is what a form counts."""
    labels = item.labels if isinstance(item, Equation) else None
    if labels is None or not count or len(labels) % count:
        return None
    vector = labels[:: len(labels) // count]
    return vector if known.counted(vector, count).minus(form).is_zero else None


def _labels_of(form: Form, counts: Sequence[int], slots: SlotTable) -> Labels:
    """Make a label vector whose kept length always equals the form; None for a constant."""
    if form.fixed:
        return None
    numbers, first = np.unique(slots.components(), return_index=True)
    chosen = first[np.searchsorted(numbers, form.keys)]
    labels = np.repeat(chosen, counts[:-1]).astype(np.int64)
    return np.concatenate([labels, slots.fresh(counts[-1])]) if counts[-1] else labels


def _follow_comparisons(comparisons: Iterable[Source], known: KnownSizes) -> None:
    """Give attributes without an equation the tensor size that the code compared them with."""
    for pair in comparisons:
        assert isinstance(pair, Computed)
        for one, other in ((pair.left, pair.right), (pair.right, pair.left)):
            if isinstance(one, FromAttribute) and isinstance(other, FromTensor):
                for labels in known.layouts(other, ""):
                    if one.value == len(labels):
                        known.solutions.setdefault(one.key, Solution(labels, ""))


def _assume_constant(attributes: Iterable[FromAttribute], known: KnownSizes) -> None:
    """Let attributes that are still unknown stay as they are."""
    for attribute in attributes:
        known.solutions.setdefault(attribute.key, Solution(None, ""))


def _guess(equations: Sequence[Equation], known: KnownSizes) -> None:
    """Let attributes follow a vector that counts their sum, their product, or one of them several times.

    The parts of a sum are taken to lie end to end, and a channel that is counted several times to be a
    run, or one place of every run, whichever leaves more channels. The trial cuts check that.
    """
    for item in equations:
        factor = _factor_that_counts(item, known)
        if factor is not None:
            known.solutions[factor[0].key] = Solution(factor[1], item.place)
            continue
        difference = _difference(item, known)
        if difference is not None and difference.fixed:
            continue
        terms = [found for found in _terms(item.source) if not known.is_constant(found)]
        keys = {term.key for term in terms}
        if not keys or keys & known.solutions.keys() or len(keys) < len(terms):
            continue
        form = None if item.labels is None else known.form(item.source, item.place)
        if item.labels is None or form is None or form.value != len(item.labels) or form.rest:
            continue
        if len(form.unknowns) == len(terms) > 1 and (form.weights == 1).all():
            borders = np.cumsum([term.value for term in terms])[:-1]
            for term, part in zip(terms, np.split(item.labels, borders), strict=True):
                known.solutions[term.key] = Solution(part, item.place)
        elif len(form.unknowns) == 1 and form.weights[0] > 1:
            labels = _couple_runs(item.labels, int(form.weights[0]), known.slots)
            known.solutions[known.attribute(form.unknowns[0])] = Solution(labels, item.place)


def _factor_that_counts(item: Equation, known: KnownSizes) -> tuple[FromAttribute, IntArray] | None:
    """Find the one factor of a product that can count the channels of a vector; the others are constants.

    Returns:
        The attribute and the channels that it counts, each once; ``None`` if no factor can, or several.
    """
    factors, labels = list(_factors(item.source)), item.labels
    if any(isinstance(factor, Computed) for factor in factors):
        return None
    unknown = [
        factor
        for factor in factors
        if isinstance(factor, FromAttribute) and factor.key not in known.solutions
    ]
    if len(unknown) < 2 or labels is None or known.counted(labels, len(labels)).fixed:
        return None
    forms = [known.form(factor, item.place) for factor in factors if factor not in unknown]
    if not all(form is not None and form.fixed for form in forms):
        return None
    channel, keys = known.slots.components()[labels], [factor.key for factor in unknown]
    found = []
    for factor in unknown:
        times, rest = divmod(len(labels), factor.value) if factor.value else (0, 1)
        if rest or keys.count(factor.key) > 1 or len(np.unique(channel)) != factor.value:
            continue
        ways = (np.repeat(channel[::times], times), np.tile(channel[: factor.value], times))
        vectors = (labels[::times], labels[: factor.value])
        found += [
            (factor, vector)
            for way, vector in zip(ways, vectors, strict=True)
            if np.array_equal(way, channel)
        ][:1]
    return found[0] if len(found) == 1 else None


def _factors(source: Source | int) -> Iterator[Source | int]:
    """List what a product multiplies, from left to right."""
    if isinstance(source, Computed) and source.operator == "mul":
        yield from _factors(source.left)
        yield from _factors(source.right)
    else:
        yield source


def _terms(source: Source | int) -> Iterator[FromAttribute]:
    """List the attributes that an expression adds or multiplies, from left to right."""
    if isinstance(source, FromAttribute):
        yield source
    elif isinstance(source, Computed) and source.operator in ("add", "mul"):
        yield from _terms(source.left)
        yield from _terms(source.right)


def _couple_runs(labels: IntArray, times: int, slots: SlotTable) -> IntArray:
    """Couple channels that one attribute counts several times; return one label of each run."""
    ways = [
        (np.repeat(labels[::times], times), labels[::times]),
        (np.tile(labels[: len(labels) // times], times), labels[: len(labels) // times]),
    ]
    channel = slots.components()
    several, one = max(ways, key=lambda way: apart(channel, way[0], labels))
    _join(several, labels, slots)
    return one


# -- both sides ----------------------------------------------------------------------------


def _difference(item: Equation | Quotient, known: KnownSizes) -> Form | None:
    """Subtract the sides of an equation; ``None`` if that is no linear form."""
    if isinstance(item, Quotient):
        left, right = known.form(item.left, item.place), known.form(item.right, item.place)
        return None if left is None or right is None else left.minus(right.times(item.value))
    wanted = known.counted(item.labels, item.size)
    quotient = None if wanted.fixed else _divided_by_unknown(item.source, item.place, known)
    found = quotient or known.form(item.source, item.place)
    if found is None or abs(found.value - wanted.value) > 1e-6:
        return None  # not what the operator was given: calls and operators were matched wrongly
    return found.minus(wanted)


def _divided_by_unknown(source: Source | int, place: str, known: KnownSizes) -> Form | None:
    """Treat an attribute without other constraints as a constant where a size that changes is divided by it.

    A constant may be added to it, and it may be multiplied by one.
    """
    if not isinstance(source, Computed):
        return None
    if source.operator == "add" and isinstance(source.right, int):
        form = _divided_by_unknown(source.left, place, known)
        return None if form is None else form.plus(Form.constant(source.right))
    if source.operator == "mul":
        for one, other in ((source.left, source.right), (source.right, source.left)):
            if isinstance(other, int):
                form = _divided_by_unknown(one, place, known)
                return None if form is None else form.times(other)
    if source.operator != "floordiv" or not isinstance(source.right, FromAttribute):
        return None
    if source.right.key in known.solutions:
        return None
    left = known.form(source.left, place)
    value = source.right.value
    return None if left is None or not value or left.value % value else left.times(1 / value)


def _join_sides(equations: Sequence[Equation], known: KnownSizes) -> None:
    """Join both sides of each equation that has no unknown attribute."""
    for item in _all(equations, known):
        difference = _difference(item, known)
        if difference is None or difference.fixed or difference.unknowns:
            continue
        pairs = [pair for pair in _sides(item, known) if len(pair[0]) == len(pair[1])]
        if pairs:
            channel = known.slots.components()
            _join(*max(pairs, key=lambda pair: apart(channel, *pair)), known.slots)


def _sides(item: Equation | Quotient, known: KnownSizes) -> list[tuple[IntArray, IntArray]]:
    """Find the two sides of an equation as vectors, in each order in which code may lay them out."""
    if isinstance(item, Quotient):
        lefts, rights = known.layouts(item.left, item.place), known.layouts(item.right, item.place)
        return [
            (left, vector) for left in lefts for right in rights for vector in multiples(right, item.value)
        ]
    source, labels = item.source, item.labels
    if labels is None:
        return []
    whole, parts = _undivided(source, item.place, known)
    return list(product(known.layouts(whole, item.place), multiples(labels, parts)))


def _undivided(source: Source | int, place: str, known: KnownSizes) -> tuple[Source | int, int]:
    """Write a size as a whole that is divided by a number, such as ``2 * (c // 4)`` as ``(2 * c) // 4``."""
    if isinstance(source, Computed) and source.operator == "floordiv":
        divisor = known.form(source.right, place)
        if divisor is not None and divisor.fixed:
            whole, parts = _undivided(source.left, place, known)
            return whole, parts * int(divisor.value)
    if isinstance(source, Computed) and source.operator == "mul":
        several, times = known.factored(source, place)
        if several is not source:
            whole, parts = _undivided(several, place, known)
            return Computed("mul", whole, times), parts
    return source, 1


def _join(left: Labels, right: Labels, slots: SlotTable) -> None:
    """Join two vectors of one length, unless they count the same channels in another order."""
    if left is None or right is None:
        return
    channel = slots.components()
    if len(left) == len(right) and not np.array_equal(np.sort(channel[left]), np.sort(channel[right])):
        slots.join(left, right)


# -- what cannot follow --------------------------------------------------------------------


def _freeze_unequal(equations: Sequence[Equation], known: KnownSizes) -> None:
    """Freeze the channels by which the two sides of an equation still differ."""
    for item in _all(equations, known):
        difference = _difference(item, known)
        if difference is None or difference.fixed:
            continue
        reason = f"a size in the code cannot follow ({item.place})"
        if isinstance(item, Equation) and isinstance(item.source, FromAttribute):
            source, solution = item.source, known.solutions[item.source.key]
            place = item.place if solution.labels is not None else solution.place
            name = f"{source.module}.{source.name}" if source.module else source.name
            reason = f"'{name}' also gives a size that is fixed ({place})"
        _freeze(difference, reason, known.slots)


def _keep_factor(factor: Factor, known: KnownSizes, findings: Findings) -> None:
    """Freeze channels whose number a factor is made from, unless it makes a mean of a sum over them."""
    reason = f"a factor in the code changes with the width ({factor.place})"
    form, growth = known.form(factor.source, factor.place), factor.growth
    if form is None and growth is None:  # no linear form, such as a width divided by a number of heads
        for part in parts_of(factor.source):
            found = known.form(part, factor.place)
            if found is not None:
                _freeze(found, reason, known.slots)
    if form is None or form.fixed:
        return
    power = -factor.power if factor.divides else factor.power
    if growth is not None and abs(growth.degree + power) < 1e-9:
        counted = known.counted(growth.labels, len(growth.labels))
        if form.minus(counted.times(form.value / counted.value)).fixed:
            scaled = ((1, growth.labels, factor.power),)
            findings.statistics.append(Statistic(factor.node, (), Value.plain(factor.shape), (), scaled))
            return
    _freeze(form, reason, known.slots)


def _freeze(form: Form, reason: str, slots: SlotTable) -> None:
    """Freeze the channels that a number is made from."""
    slots.freeze(np.flatnonzero(np.isin(slots.components(), form.keys)), reason)
