"""Propagate labels through sums of products written with letters."""

from __future__ import annotations

import string
from collections.abc import Sequence

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.einsum")
def einsum(op: RuleContext) -> Value | list[Value]:
    """Join dimensions of one letter; contract letters that the result does not have."""
    values = op.values("tensors")
    terms, result = _letters(str(op.option("equation")), [value.shape for value in values])
    if result is None:
        return op.refuse("a sum of products in a form that is not supported")
    if len(values) == 2:
        both = [(terms[0].index(letter), terms[1].index(letter)) for letter in terms[0] if letter in terms[1]]
        shared = [pair for pair in both if terms[0][pair[0]] in result]
        op.record_product(values[0], values[1], shared, [pair for pair in both if pair not in shared])
    _reject_mismatches(op, terms, values)
    found: dict[str, Labels] = {}
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, labels, size in zip(term, value.labels, value.shape, strict=True):
            found[letter] = op.join(found[letter], labels) if letter in found else labels
            sizes[letter] = size
    for term, value in zip(terms, values, strict=True):
        for letter, labels in zip(term, value.labels, strict=True):
            op.set_role(labels, Role.PRODUCER if letter in result else Role.CONSUMER)
    _contract(op, terms, result, found)
    op.add_macs(1, *Value(tuple(sizes.values()), tuple(found.values())).extents)
    return Value(op.shape, tuple(found[letter] for letter in result))


def _contract(op: RuleContext, terms: list[str], result: str, found: dict[str, Labels]) -> None:
    """Mask contracted channels in the first tensor that has them."""
    for letter, labels in found.items():
        if letter in result:
            continue
        place = next(place for place, term in enumerate(terms) if letter in term)
        op.read_item("tensors", place, terms[place].index(letter), labels)
        if len([term for term in terms if letter in term]) > 1:
            op.reject_axis(labels)


def _reject_mismatches(op: RuleContext, terms: list[str], values: list[Value]) -> None:
    """Object to choices in the tensor that lacks channels where it meets another one."""
    for first in range(len(terms)):
        for second in range(first):
            common = [letter for letter in terms[first] if letter in terms[second]]
            dims = [(terms[first].index(letter), terms[second].index(letter)) for letter in common]
            op.reject_axis_mismatch(values[first], values[second], dims)


def _letters(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str | None]:
    """Parse the letters of each operand and of the result; no result for forms that are not supported.

    Dimensions under an ellipsis get unused letters, counted from the last one.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    named = [len(term.replace("...", "")) for term in terms]
    most = max(len(shape) - count for shape, count in zip(shapes, named, strict=True))
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    if any(len(set(term) - {"."}) != count for term, count in zip(terms, named, strict=True)):
        return terms, None
    if most > len(spare):
        return terms, None
    hidden = "".join(spare[:most])
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        result = "...".join(["", "".join(once)]) if "..." in left else "".join(once)
    terms = [
        term.replace("...", hidden[most - len(shape) + count :])
        for term, shape, count in zip(terms, shapes, named, strict=True)
    ]
    result = result.replace("...", hidden)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape):
            return terms, None
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return terms, None  # repeated as often as the other operand says
    return terms, result
