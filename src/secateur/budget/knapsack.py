"""The choice of widths by measured damage: a multiple-choice knapsack under all limits at once.

Each group takes one of its widths; damages add up; every limited quantity must fit. Costs are
not linear: a convolution's is the product of two widths. So they are taken as they change when
one group alone changes from the current widths, the integer programme is solved, and the same
again from its answer, until it settles. Each answer is then corrected with the exact costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from secateur.budget.limits import Meter, words_for
from secateur.errors import BudgetError
from secateur.graph.groups import IntArray

_ROUNDS = 12  # programmes solved at most
_GAIN, _IDLE = 1e-3, 2  # fewer, where so many in a row take away less than this share of the damage
_EXCHANGES = 250  # tried at most behind the last programme: a few seconds for a hundred groups
_AT_ONCE = 8  # one group of so many moves in one step, where limits are far
_NODES = 500  # of one programme's search tree; a limit in seconds would make plans depend on the load

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Choice:
    """The widths that one group may take, ascending, and the damage at each, descending."""

    widths: IntArray
    damages: FloatArray


def least_damage(meter: Meter, choices: Sequence[Choice]) -> IntArray:
    """The widths of least total damage within all limits.

    Args:
        meter: the network and the limits.
        choices: one per group of the network.

    Returns:
        Widths, shape ``(groups,)``. They keep to the limits exactly, and no single group could be
        widened by a step without breaking one.

    Raises:
        BudgetError: narrowing the groups one after the other leads to no widths within the limits.
    """
    places = _start(meter, choices)
    best, best_damage, idle = places, _damage(choices, places), 0
    for _ in range(_ROUNDS):
        answer = _solve(meter, choices, places)
        if answer is None:
            break
        corrected = _corrected(meter, choices, answer)
        if corrected is None:
            raise BudgetError(_too_much(meter, choices))
        damage = _damage(choices, corrected)
        idle = 0 if damage < (1 - _GAIN) * best_damage else idle + 1
        if damage < best_damage:
            best, best_damage = corrected, damage
        if idle == _IDLE or np.array_equal(answer, places):
            break
        places = answer
    final = _corrected(meter, choices, best)
    if final is None:
        raise BudgetError(_too_much(meter, choices))
    return _widths(choices, _exchanged(meter, choices, final))


def _too_much(meter: Meter, choices: Sequence[Choice]) -> str:
    """What the least widths on offer need of the quantities of which they need too much."""
    least = _widths(choices, np.zeros(len(choices), dtype=np.int64))
    needs = zip(meter.amounts.items(), meter.limited(least).tolist(), strict=True)
    beyond = [
        f"{words_for(name, need)}, and at most {words_for(name, allowed)} may remain"
        for (name, allowed), need in needs
        if need > allowed
    ]
    return (
        f"no widths on offer keep to the budget: at the least ones the network needs {'; '.join(beyond)}; "
        "allow more, or fewer channels (min_channels)"
    )


def _widths(choices: Sequence[Choice], places: IntArray) -> IntArray:
    return np.array(
        [choice.widths[place] for choice, place in zip(choices, places, strict=True)], dtype=np.int64
    )


def _alone(widths: IntArray, groups: IntArray, changed: npt.ArrayLike) -> IntArray:
    """Widths, shape (changes, groups), in each of which one group alone has another width."""
    trials = np.repeat(widths[None], len(groups), axis=0)
    trials[np.arange(len(groups)), groups] = changed
    return trials


def _damage(choices: Sequence[Choice], places: IntArray) -> float:
    return float(sum(choice.damages[place] for choice, place in zip(choices, places, strict=True)))


def _start(meter: Meter, choices: Sequence[Choice]) -> IntArray:
    """About the same share of every group, as large as the limits allow."""
    ends = np.array([len(choice.widths) - 1 for choice in choices], dtype=np.int64)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if meter.within(_widths(choices, (ends * middle).astype(np.int64))):
            low = middle
        else:
            high = middle
    return (ends * low).astype(np.int64)


def _solve(meter: Meter, choices: Sequence[Choice], places: IntArray) -> IntArray | None:
    """The best places by costs as they are around the current ones; ``None`` if there are none."""
    current = _widths(choices, places)
    sizes = [len(choice.widths) for choice in choices]
    owner = np.repeat(np.arange(len(choices)), sizes)
    trials = _alone(current, owner, np.concatenate([choice.widths for choice in choices]))
    now = meter.limited(current)
    changes = (meter.limited(trials) - now).astype(np.float64)
    room = (meter.allowed - now).astype(np.float64)
    scale = np.maximum(np.abs(meter.allowed), 1).astype(np.float64)
    one_each = sparse.csr_array(
        (np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(choices), len(owner))
    )
    result = milp(
        np.concatenate([choice.damages for choice in choices]),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((changes / scale).T, -np.inf, room / scale),
        ],
        options={"node_limit": _NODES, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        return None
    starts = np.cumsum([0, *sizes[:-1]])
    return np.array(
        [int(np.argmax(result.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)],
        dtype=np.int64,
    )


def _corrected(
    meter: Meter, choices: Sequence[Choice], places: IntArray, held: int | None = None
) -> IntArray | None:
    """Places changed step by step until the exact costs keep to the limits and use them up.

    A group that is held is narrowed only when no other can be. ``None`` if all groups are at their least
    widths and a limit is still broken.
    """
    places = places.copy()
    while not meter.within(_widths(choices, places)):
        if not places.any():
            return None
        places = _step(meter, choices, places, -1, held)
    while True:
        wider = _step(meter, choices, places, +1)
        if np.array_equal(wider, places):
            return places
        places = wider


def _exchanged(meter: Meter, choices: Sequence[Choice], places: IntArray) -> IntArray:
    """Moves one group, near or far, wherever what the others then gain or give up makes it worth while."""
    damage, tried, since = _damage(choices, places), 0, 0
    promising = _promising(meter, choices, places)
    for group in itertools.cycle(range(len(choices))):
        if since == len(choices):  # nothing found in a whole round
            break
        since += 1
        for move in promising[group]:
            if tried == _EXCHANGES:
                return places
            tried += 1
            trial = places.copy()
            trial[group] = move
            corrected = _corrected(meter, choices, trial, held=group)
            if corrected is not None and _damage(choices, corrected) < damage:
                places, damage, since = corrected, _damage(choices, corrected), 0
                promising = _promising(meter, choices, places)
                break
    return places


def _promising(meter: Meter, choices: Sequence[Choice], places: IntArray) -> list[list[int]]:
    """Of each group, the moves that may be worth while: all, or where they are too many to try, judged first.

    What the others would give up or gain counts at the best price that any single move of theirs has; a move
    that does not pay at that price under one of the limits alone is left out.
    """
    reach = [
        _moves(int(place), len(choice.widths) - 1) for place, choice in zip(places, choices, strict=True)
    ]
    if sum(map(len, reach)) <= _EXCHANGES:
        return reach
    owner = np.repeat(np.arange(len(choices)), [len(there) for there in reach])
    moves = [(group, place) for group, there in enumerate(reach) for place in there]
    current = _widths(choices, places)
    widths = _alone(current, owner, [choices[group].widths[place] for group, place in moves])
    harm = np.array(
        [choices[group].damages[place] - choices[group].damages[places[group]] for group, place in moves]
    )
    now = meter.limited(current)
    worth = np.ones(len(moves), dtype=np.bool_)
    for cost, room in zip((meter.limited(widths) - now).T, meter.allowed - now, strict=True):
        price = np.divide(harm, cost, out=np.full(len(moves), np.inf), where=cost != 0)
        saving = _least_of_others(np.where(cost < 0, -price, np.inf), owner, len(choices))
        spending = np.maximum(-_least_of_others(np.where(cost > 0, price, np.inf), owner, len(choices)), 0)
        beyond = np.maximum(cost - room, 0)
        given_up = np.multiply(saving, beyond, out=np.zeros(len(moves)), where=beyond > 0)
        gained = spending * np.maximum(room - cost, 0)
        worth &= harm + given_up - gained < 0
    return [
        [place for place, good in zip(there, worth[owner == group], strict=True) if good]
        for group, there in enumerate(reach)
    ]


def _least_of_others(values: FloatArray, owner: IntArray, groups: int) -> FloatArray:
    """For each value, the least of those of other owners; infinite if there are none."""
    least = np.full(groups, np.inf)
    np.minimum.at(least, owner, values)
    first, second = np.sort(np.append(least, np.inf))[:2]
    return np.asarray(np.where(np.arange(groups) == np.argmin(least), second, first)[owner])


def _moves(place: int, end: int) -> list[int]:
    """Places that are 1, 2, 4, ... steps away, on both sides."""
    steps = [1 << power for power in range(end.bit_length())]
    return [there for step in steps for there in (place - step, place + step) if 0 <= there <= end]


def _step(
    meter: Meter, choices: Sequence[Choice], places: IntArray, direction: int, held: int | None = None
) -> IntArray:
    """One group one step narrower or wider: the one with the least damage for its cost.

    Where the limits are far, and groups many, some of the best move at once and go up to half of the way.
    Wider only where the limits allow it, else the places stay; narrower always, the held group last.
    """
    ends = np.array([len(choice.widths) - 1 for choice in choices])
    movable = np.flatnonzero((places + direction >= 0) & (places + direction <= ends))
    if direction < 0 and len(movable) > 1:
        movable = movable[movable != held]
    current = _widths(choices, places)
    moved = [choices[group].widths[int(places[group]) + direction] for group in movable.tolist()]
    widths = _alone(current, movable, moved)
    damage = np.array(
        [
            choices[group].damages[int(places[group]) + direction]
            - choices[group].damages[int(places[group])]
            for group in movable.tolist()
        ]
    )
    if direction > 0:
        fits = np.asarray(meter.within(widths), dtype=np.bool_) if len(widths) else np.zeros(0, np.bool_)
        movable, widths, damage = movable[fits], widths[fits], damage[fits]
        if not len(movable):
            return places
    now = meter.limited(current).astype(np.float64)
    scale = np.maximum(meter.allowed, 1)
    change = direction * (meter.limited(widths) - now) / scale
    room = np.abs(now - meter.allowed) / scale
    if direction < 0:
        change, room = change[:, now > meter.allowed], room[now > meter.allowed]
    # A device runs some groups faster when they are wider: narrowing them saves nothing.
    cost = np.maximum(change, 0.0).sum(axis=1) + 1e-12
    # Narrower: least damage for what it saves. Wider: most damage undone for what it costs.
    order = np.argsort(damage / cost, kind="stable")[: max(1, len(choices) // _AT_ONCE)]
    far = (np.cumsum(np.maximum(change[order], 0.0), axis=0) <= room / 2).all(axis=1)
    chosen = order[: max(1, int(far.sum()))]
    stepped = places.copy()
    stepped[movable[chosen]] += direction
    if direction > 0 and len(chosen) > 1 and not meter.within(_widths(choices, stepped)):
        stepped[movable[chosen[1:]]] -= direction  # wider together, they cost more than one by one
    return stepped
