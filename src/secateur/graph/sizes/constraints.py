"""Sizes as equations: what a network's code makes tensors with must stay true after a cut.

Each size that an operator is given is the number of labels in a vector, or a constant. Where the
size comes from is an expression of attributes and of sizes of other tensors. Both sides are linear
forms in the channels, so an equation holds after every cut exactly if the two forms are equal.

Attributes are worked out first: an attribute that is the only unknown of an equation follows what
the equation leaves. What is unequal then is joined where two vectors of one length
stand against each other, and frozen where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, SlotTable, Value
from secateur.graph.propagation.findings import Attribute, Equation, Findings, Statistic
from secateur.graph.sizes.factors import Factor
from secateur.graph.sizes.linear_forms import Form, apart, multiples
from secateur.graph.sizes.source import Computed, FromAttribute, FromTensor, Power, Source

_Key = tuple[str, str, int | None]


def resolve_sizes(findings: Findings, slots: SlotTable, env: Mapping[Node, Any]) -> None:
    """Turn all sizes that were noted in propagation into equalities between labels.

    Args:
        findings: what propagation found; attributes that follow label vectors are added.
        slots: the table that collects equalities.
        env: the value of every node.
    """
    if findings.equations or findings.factors or findings.comparisons:
        _Settling(findings, slots, {node.name: value for node, value in env.items()}).run()


@dataclass(frozen=True)
class _Ratio:
    """One size that is divided by another: the quotient stays only while both change alike."""

    left: Source
    right: Source
    quotient: int
    place: str


class _Settling:
    """The equations of one program, and what is known of attributes so far."""

    def __init__(self, findings: Findings, slots: SlotTable, env: Mapping[str, Any]) -> None:
        self._findings = findings
        self._slots = slots
        self._env = env
        self._ties: dict[_Key, Labels] = {}
        self._fixed: dict[_Key, str] = {}
        self._numbers: dict[_Key, int] = {}
        self._channel: IntArray = np.zeros(0, np.int64)
        self._class_stays = self._guess = False
        self._open: list[Equation | _Ratio] = []
        self._meetings: list[tuple[IntArray, IntArray]] = []
        for item in findings.attributes:
            self._tie((item.module, item.name, item.index), item.labels)

    def run(self) -> None:
        """Work out attributes, joins what stands against each other, and freezes the rest."""
        self._resolve()
        for one, other in self._meetings:
            self._meet(one, other)
        # What comes straight from an attribute goes first: quotients are made of them.
        equations = self._findings.equations
        direct = [item for item in equations if isinstance(item.source, FromAttribute)]
        sizes = [item for item in equations if isinstance(item.source, FromTensor)]
        self._open = [*direct, *sizes, *(item for item in equations if isinstance(item.source, Computed))]
        known = -1
        while len(self._ties) > known:  # what was joined cancels, which may leave one unknown
            known = len(self._ties)
            self._find_attributes()
            self._find_compared()
            self._join_all()
        self._class_stays = True  # such as an expansion, which all modules of a class have in common
        self._find_attributes()
        self._join_all()
        self._propose()
        self._find_attributes()
        self._join_all()
        self._guess = True  # attributes that are still unknown stay as they are
        self._join_all()
        for item in self._open:
            self._freeze(item)
        for factor in self._findings.factors:
            self._settle_factor(factor)

    # -- attributes ------------------------------------------------------------------------

    def _find_attributes(self) -> None:
        """Solve equations with one unknown attribute until there are none."""
        before = (-1, -1)
        while (len(self._ties), len(self._open)) != before:
            before = (len(self._ties), len(self._open))
            for item in list(self._open):
                self._solve(item)

    def _find_compared(self) -> None:
        """Let attributes of which nothing else is known follow the sizes that code held them equal to."""
        for pair in self._findings.comparisons:
            assert isinstance(pair, Computed)
            for one, other in ((pair.left, pair.right), (pair.right, pair.left)):
                if isinstance(one, FromAttribute) and isinstance(other, FromTensor):
                    labels = self._vector(other)
                    if self._key(one) not in self._ties and labels is not None and one.value == len(labels):
                        self._follow(self._key(one), labels, "")

    def _solve(self, item: Equation | _Ratio) -> None:
        source = item.source if isinstance(item, Equation) else None
        if isinstance(source, FromAttribute):
            key = (source.module, source.name, source.index)
            assert isinstance(item, Equation)
            if key not in self._ties:
                self._follow(key, item.labels, item.place)
            return
        difference = self._difference(item)
        if difference is None or len(difference.unknowns) != 1:
            return
        number = difference.unknowns[0]
        weight, left = difference.without(number)
        solution = left.times(-1 / weight)
        counts = solution.counts()
        key = list(self._numbers)[-1 - number]
        if counts is not None:
            self._follow(key, self._vector_of(solution, counts), item.place)

    def _propose(self) -> None:
        """Let attributes follow a vector that counts their sum, or one of them several times.

        The parts of a sum are taken to lie end to end, and a channel that is counted several times to be a
        run, or one place of every run, whichever leaves more channels. The trial cuts check that.
        """
        for item in self._open:
            if not isinstance(item, Equation) or item.labels is None:
                continue
            form = self._form(item.source, item.place)
            if form is None or form.value != len(item.labels) or form.rest:
                continue
            attributes = [found for found in _attributes_in(item.source) if not self._attribute(found).fixed]
            keys = [self._key(attribute) for attribute in attributes]
            if not keys or set(keys) & self._ties.keys() or len(set(keys)) < len(keys):
                continue
            if len(form.unknowns) == len(keys) > 1 and (form.weights == 1).all():
                borders = np.cumsum([attribute.value for attribute in attributes])[:-1]
                for key, part in zip(keys, np.split(item.labels, borders), strict=True):
                    self._follow(key, part, item.place)
            elif len(form.unknowns) == 1 and form.weights[0] > 1:
                key = list(self._numbers)[-1 - form.unknowns[0]]
                self._share(key, item.labels, int(form.weights[0]), item.place)

    def _share(self, key: _Key, labels: IntArray, times: int, place: str) -> None:
        """Couple channels that one attribute counts several times."""
        ways = [
            (np.repeat(labels[::times], times), labels[::times]),
            (np.tile(labels[: len(labels) // times], times), labels[: len(labels) // times]),
        ]
        several, own = max(ways, key=lambda way: apart(self._channel, way[0], labels))
        self._meet(several, labels)
        self._follow(key, own, place)

    def _follow(self, key: _Key, labels: Labels, place: str) -> None:
        self._tie(key, labels)
        if labels is None:
            self._fixed[key] = place
        else:
            self._findings.attributes.append(Attribute(*key, labels))

    def _tie(self, key: _Key, labels: Labels) -> None:
        """Let an attribute follow a vector; two vectors of one attribute follow each other."""
        known = self._ties.setdefault(key, labels)
        if known is not labels and known is not None and labels is not None:
            self._meetings.append((known, labels))

    def _vector_of(self, form: Form, counts: Sequence[int]) -> Labels:
        """Labels of which there are always as many as a form says; nothing for a constant."""
        if form.fixed:
            return None
        numbers, slots = np.unique(self._channel, return_index=True)
        chosen = slots[np.searchsorted(numbers, form.keys)]
        labels = np.repeat(chosen, counts[:-1]).astype(np.int64)
        return np.concatenate([labels, self._slots.fresh(counts[-1])]) if counts[-1] else labels

    # -- both sides ------------------------------------------------------------------------

    def _join_all(self) -> None:
        """Join vectors that stand against each other, one pair after the other."""
        place = 0
        while place < len(self._open):  # quotients add equations on the way
            item = self._open[place]
            difference = self._difference(item)
            if difference is not None and not difference.fixed and not difference.unknowns:
                self._meet_best(self._sides(item))
            place += 1

    def _meet(self, left: IntArray, right: IntArray) -> None:
        """Join two vectors of one length, unless they count the same channels in another order."""
        if len(left) != len(right):
            return
        if max(left.max(initial=0), right.max(initial=0)) >= len(self._channel):
            self._resolve()
        if not np.array_equal(np.sort(self._channel[left]), np.sort(self._channel[right])):
            self._slots.join(left, right)
            self._resolve()

    def _freeze(self, item: Equation | _Ratio) -> None:
        difference = self._difference(item)
        if difference is None or difference.fixed:
            return
        reason = f"a size in the code cannot follow ({item.place})"
        if isinstance(item, Equation) and isinstance(item.source, FromAttribute):
            source = item.source
            place = self._fixed.get((source.module, source.name, source.index), item.place)
            name = f"{source.module}.{source.name}" if source.module else source.name
            reason = f"'{name}' also gives a size that is fixed ({place})"
        slots = np.flatnonzero(np.isin(self._channel, difference.keys))
        self._slots.freeze(slots, reason)
        self._resolve()

    def _settle_factor(self, factor: Factor) -> None:
        """Freeze channels whose number a factor is made from, unless it makes a mean of a sum over them."""
        form = self._form(factor.source, factor.place)
        if form is None or form.fixed:
            return
        growth = factor.growth
        power = -factor.power if factor.divides else factor.power
        if growth is not None and abs(growth.degree + power) < 1e-9:
            counted = self._counted(growth.labels, len(growth.labels))
            if form.minus(counted.times(form.value / counted.value)).fixed:
                scaled = ((1, growth.labels, factor.power),)
                statistic = Statistic(factor.node, (), Value.plain(factor.shape), (), scaled)
                self._findings.statistics.append(statistic)
                return
        slots = np.flatnonzero(np.isin(self._channel, form.keys))
        self._slots.freeze(slots, f"a factor in the code changes with the width ({factor.place})")

    def _difference(self, item: Equation | _Ratio) -> Form | None:
        """What an equation's sides differ by; ``None`` if that is no linear form."""
        if isinstance(item, _Ratio):
            left, right = self._form(item.left, item.place), self._form(item.right, item.place)
            return None if left is None or right is None else left.minus(right.times(item.quotient))
        wanted = self._counted(item.labels, item.size)
        found = self._quotient(item, wanted) or self._form(item.source, item.place)
        if found is None or abs(found.value - wanted.value) > 1e-6:
            return None  # not what the operator was given: calls and operators were matched wrongly
        return found.minus(wanted)

    def _quotient(self, item: Equation, wanted: Form) -> Form | None:
        """A quotient that changes, divided by an attribute of which nothing is known: that one stays."""
        source = item.source
        if wanted.fixed or not isinstance(source, Computed) or source.operator != "floordiv":
            return None
        if not isinstance(source.right, FromAttribute) or self._key(source.right) in self._ties:
            return None
        left = self._form(source.left, item.place)
        value = source.right.value
        return None if left is None or not value or left.value % value else left.times(1 / value)

    def _sides(self, item: Equation | _Ratio) -> list[tuple[Labels, Labels]]:
        """The two sides of an equation as vectors, in each order in which code may lay them out."""
        if isinstance(item, _Ratio):
            left, right = self._vector(item.left), self._vector(item.right)
            return [(left, vector) for vector in multiples(right, item.quotient)]
        source = item.source
        if isinstance(source, Computed) and source.operator == "floordiv" and item.labels is not None:
            divisor = self._form(source.right, item.place)
            if divisor is not None and divisor.fixed:
                left = self._vector(source.left)
                return [(left, vector) for vector in multiples(item.labels, int(divisor.value))]
        if isinstance(source, Computed) and source.operator == "mul":
            for one, other in ((source.left, source.right), (source.right, source.left)):
                factor = self._form(other, item.place)
                if factor is not None and factor.fixed:
                    vectors = multiples(self._vector(one), int(factor.value))
                    return [(vector, item.labels) for vector in vectors]
        return [(self._vector(source), item.labels)]

    def _meet_best(self, pairs: Sequence[tuple[Labels, Labels]]) -> None:
        """Join the pair of vectors that leaves most channels apart."""
        known = [(one, other) for one, other in pairs if one is not None and other is not None]
        known = [(one, other) for one, other in known if len(one) == len(other)]
        if known:
            self._meet(*max(known, key=lambda pair: apart(self._channel, *pair)))

    def _vector(self, source: Source | int) -> Labels:
        """The labels that an expression counts, in the order in which code lays them out."""
        if isinstance(source, FromAttribute):
            return self._ties.get(self._key(source))
        if isinstance(source, FromTensor):
            value = self._value(source)
            return None if value is None else value.labels[source.dim]
        if isinstance(source, Computed) and source.operator == "add":
            parts = [self._vector(source.left), self._vector(source.right)]
            known = [part for part in parts if part is not None]
            return np.concatenate(known) if len(known) == len(parts) else None
        return None

    # -- forms -----------------------------------------------------------------------------

    def _form(self, source: Source | int, place: str) -> Form | None:
        """An expression as a linear form; ``None`` if it is none, or a part is unknown."""
        if isinstance(source, int):
            return Form.constant(source)
        if isinstance(source, FromAttribute):
            return self._attribute(source)
        if isinstance(source, FromTensor):
            value = self._value(source)
            return None if value is None else self._counted(value.labels[source.dim], value.shape[source.dim])
        if isinstance(source, Power):
            return None
        left, right = self._form(source.left, place), self._form(source.right, place)
        if left is None or right is None:
            return None
        if source.operator == "add":
            return left.plus(right)
        if source.operator == "sub":
            return left.minus(right)
        if source.operator == "mul":
            factor, form = (left, right) if left.fixed else (right, left)
            return form.times(factor.rest) if factor.fixed else None
        if source.operator == "floordiv" and right.value:
            return self._divided(source, left, right, place)
        return Form.constant(left.value % right.value) if left.fixed and right.fixed and right.value else None

    def _divided(self, source: Computed, left: Form, right: Form, place: str) -> Form | None:
        """A quotient: by a constant it is linear; of two sizes it is taken for a constant, which is noted."""
        if right.fixed:
            if left.fixed:
                return Form.constant(left.value // right.value)
            return None if left.value % right.value else left.times(1 / right.value)
        if left.fixed or left.value % right.value:
            return None
        assert not isinstance(source.left, int)
        assert not isinstance(source.right, int)
        quotient = int(left.value // right.value)
        noted = [(item.left, item.right) for item in self._open if isinstance(item, _Ratio)]
        if (source.left, source.right) not in noted and not left.minus(right.times(quotient)).fixed:
            self._open.append(_Ratio(source.left, source.right, quotient, place))
        return Form.constant(quotient)

    def _attribute(self, source: FromAttribute) -> Form:
        key = self._key(source)
        if key in self._ties:
            return self._counted(self._ties[key], source.value)
        if self._guess or (self._class_stays and source.of_class):
            return Form.constant(source.value)
        number = self._numbers.setdefault(key, len(self._numbers))
        return Form.of(np.array([-1 - number]), 0.0, source.value)

    def _counted(self, labels: Labels, size: int) -> Form:
        """The number of kept labels of a vector; the ones that can never be removed are a constant."""
        if labels is None:
            return Form.constant(size)
        if labels.max(initial=0) >= len(self._channel):
            self._resolve()
        channels = self._channel[labels]
        moving = channels[self._removable[channels]]
        return Form.of(moving, float(len(labels) - len(moving)), float(len(labels)))

    def _resolve(self) -> None:
        """Recompute the channels, and which can be removed: the produced ones that nothing freezes."""
        self._channel = self._slots.components()
        role, _ = self._slots.roles()
        reason, _ = self._slots.reasons(self._channel)
        produced = np.zeros(len(reason), dtype=bool)
        produced[self._channel[: self._slots.tensor_slots][role[: self._slots.tensor_slots] == 0]] = True
        self._removable = produced & (reason < 0)

    @staticmethod
    def _key(source: FromAttribute) -> _Key:
        return source.module, source.name, source.index

    def _value(self, source: FromTensor) -> Value | None:
        found = self._slots.tensor(source.tensor) if source.tensor else self._env.get(source.node)
        if isinstance(found, Sequence):
            found = found[source.place] if source.place < len(found) else None
        return found if isinstance(found, Value) and source.dim < len(found.shape) else None


def _attributes_in(source: Source | int) -> Iterator[FromAttribute]:
    """The attributes that an expression adds or multiplies, from left to right."""
    if isinstance(source, FromAttribute):
        yield source
    elif isinstance(source, Computed) and source.operator in ("add", "mul"):
        yield from _attributes_in(source.left)
        yield from _attributes_in(source.right)
