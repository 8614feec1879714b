"""Sums of products written with letters."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule


@rule("aten.einsum")
def einsum(op: RuleContext) -> Value:
    """Dimensions of one letter meet; letters that do not come out are contracted."""
    values = op.values("tensors")
    terms, result = _letters(str(op.option("equation")))
    if result is None or any(
        len(term) != len(value.shape) for term, value in zip(terms, values, strict=True)
    ):
        for value in values:
            for labels in value.labels:
                op.freeze(labels, f"a sum of products in a form that is not followed ({op.place})")
        return Value.plain(op.shape)
    _object(op, terms, values)
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
    op.add_macs(1, *(sizes[letter] if found[letter] is None else found[letter] for letter in sizes))
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


def _object(op: RuleContext, terms: list[str], values: list[Value]) -> None:
    """Object where two tensors meet of which only one has channels there."""
    for first in range(len(terms)):
        for second in range(first):
            common = [letter for letter in terms[first] if letter in terms[second]]
            dims = [(terms[first].index(letter), terms[second].index(letter)) for letter in common]
            op.reject_axis_mismatch(values[first], values[second], dims)


def _letters(equation: str) -> tuple[list[str], str | None]:
    """The letters of each operand and of the result; no result for forms that are not followed."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    followed = arrow and "." not in equation and all(len(set(term)) == len(term) for term in terms)
    return terms, right if followed else None
