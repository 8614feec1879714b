"""Sums of products written with letters."""

from __future__ import annotations

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site


@rule("aten.einsum")
def einsum(site: Site) -> Value:
    """Dimensions of one letter meet; letters that do not come out are contracted."""
    values = site.values("tensors")
    terms, result = _letters(str(site.option("equation")))
    if result is None or any(
        len(term) != len(value.shape) for term, value in zip(terms, values, strict=True)
    ):
        for value in values:
            for labels in value.labels:
                site.freeze(labels, f"a sum of products in a form that is not followed ({site.place})")
        return Value.plain(site.shape)
    _object(site, terms, values)
    found: dict[str, Labels] = {}
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, labels, size in zip(term, value.labels, value.shape, strict=True):
            found[letter] = site.join(found[letter], labels) if letter in found else labels
            sizes[letter] = size
    for term, value in zip(terms, values, strict=True):
        for letter, labels in zip(term, value.labels, strict=True):
            site.claim(labels, Role.PRODUCER if letter in result else Role.CONSUMER)
    _contract(site, terms, result, found)
    site.work(1, *(sizes[letter] if found[letter] is None else found[letter] for letter in sizes))
    return Value(site.shape, tuple(found[letter] for letter in result))


def _contract(site: Site, terms: list[str], result: str, found: dict[str, Labels]) -> None:
    """Masks contracted channels in the first tensor that has them."""
    for letter, labels in found.items():
        if letter in result:
            continue
        place = next(place for place, term in enumerate(terms) if letter in term)
        site.read_item("tensors", place, terms[place].index(letter), labels)
        if len([term for term in terms if letter in term]) > 1:
            site.object(labels)


def _object(site: Site, terms: list[str], values: list[Value]) -> None:
    """Objects where two tensors meet of which only one has channels there."""
    for first in range(len(terms)):
        for second in range(first):
            common = [letter for letter in terms[first] if letter in terms[second]]
            dims = [(terms[first].index(letter), terms[second].index(letter)) for letter in common]
            site.object_unless_alike(values[first], values[second], dims)


def _letters(equation: str) -> tuple[list[str], str | None]:
    """The letters of each operand and of the result; no result for forms that are not followed."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    followed = arrow and "." not in equation and all(len(set(term)) == len(term) for term in terms)
    return terms, right if followed else None
