"""Combine conditions on which residual branches are present, as sums of products."""

from __future__ import annotations

from collections.abc import Iterable

Literal = tuple[int, bool]
"""A branch by index, and whether it is present."""

Case = frozenset[Literal]
"""Literals that hold together."""

Condition = frozenset[Case]
"""Cases of which at least one holds."""

ALWAYS: Condition = frozenset([frozenset()])
NEVER: Condition = frozenset()


def all_present(branches: Iterable[int]) -> Condition:
    """Return the condition that all of some branches are present."""
    return frozenset([frozenset((branch, True) for branch in branches)])


def is_absent(branch: int) -> Condition:
    """Return the condition that a branch is absent."""
    return frozenset([frozenset([(branch, False)])])


def either(*conditions: Condition) -> Condition:
    """Return the condition that at least one condition holds.

    >>> either(all_present([0]), all_present([0, 1])) == all_present([0])
    True
    """
    if ALWAYS in conditions:
        return ALWAYS
    cases: set[Case] = set().union(*conditions)
    return frozenset(case for case in cases if not any(other < case for other in cases))


def both(one: Condition, other: Condition) -> Condition:
    """Return the condition that two conditions hold.

    >>> both(all_present([0]), is_absent(0)) == NEVER
    True
    """
    if one == ALWAYS or other == ALWAYS:
        return other if one == ALWAYS else one
    joined = (first | second for first in one for second in other)
    return either(frozenset(case for case in joined if not _contradicts(case)))


def opposite(condition: Condition) -> Condition:
    """Return the condition that a condition does not hold.

    >>> opposite(all_present([0])) == is_absent(0)
    True
    """
    found = ALWAYS
    for case in condition:
        found = both(found, frozenset(frozenset([(branch, not there)]) for branch, there in case))
    return found


def exclusive(condition: Condition) -> list[Case]:
    """Split a condition into mutually exclusive cases.

    >>> cases = exclusive(either(all_present([0]), all_present([1])))
    >>> [sorted(case) for case in cases]
    [[(0, True)], [(0, False), (1, True)]]
    """
    if not condition or frozenset() in condition:
        return [frozenset()] if condition else []
    branch = min(branch for case in condition for branch, _ in case)
    found = []
    for there in (True, False):
        rest = either(
            frozenset(case - {(branch, there)} for case in condition if (branch, not there) not in case)
        )
        found += [case | {(branch, there)} for case in exclusive(rest)]
    return found


def _contradicts(case: Case) -> bool:
    return any((branch, not there) in case for branch, there in case)
