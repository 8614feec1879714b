"""Choose the widths of least damage under all limits at once: a multiple-choice knapsack.

Each group takes one of its options. Damages add up over groups; costs do not, since a convolution's cost is
the product of two widths. The search has five parts:

1. Start from about the same share of every group.
2. Linearise: count the cost of each option as if its group alone changed, and solve the integer programme.
   Repeat around the answer, until the damage no longer falls (at most ``_PROGRAMMES`` times).
3. Make each answer feasible by exact costs: narrow groups, the least damage per saved cost first, until the
   limits hold; then widen groups, the most damage undone per cost first, while they hold.
4. Exchange: move one group and let the others make the choice feasible again; keep the move if the damage
   falls. Stop after a round without success (at most ``_EXCHANGES`` moves are tried).
5. Remove or restore one branch, and choose the groups again while no other branch changes: one programme and
   some exchanges; keep the result if the damage falls. What a branch saves pays for many groups at once,
   which no exchange of one group shows. Stop after a round without success (at most ``_TURNS`` trials).

A residual branch is an option of width 0 or 1. Groups inside an absent branch cost nothing and have no
damage; in the integer programme they are "gone", which is one more option that they take exactly then.

Every part has a limit on its number of steps, none a limit on time, so that equal inputs give equal widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from secateur.budget.depth import vanished
from secateur.budget.limits import CostEvaluator, amount_words
from secateur.errors import BudgetError
from secateur.graph.groups import BoolArray, FloatArray, IntArray

_PROGRAMMES = 12
_GAIN, _IDLE = 1e-3, 2  # stop after so many programmes that lower the damage by less than this share
_EXCHANGES = 250  # a few seconds for a hundred groups
_TURNS = 60  # a few seconds for a hundred groups
_AT_ONCE = 8  # one group of so many moves in one step, where limits are far
_NODES = 500  # of one programme's search tree; a limit in seconds would make plans depend on the load


@dataclass(frozen=True, eq=False)
class GroupOptions:
    """The widths that one group may take, ascending, and the damage at each, descending.

    A residual branch has the widths 0 and 1.
    """

    widths: IntArray
    damages: FloatArray


@dataclass(frozen=True, eq=False)
class _Problem:
    """The network, its limits and the options of every group.

    A choice is an array of places, shape (groups,): the index of each group's option.

    Attributes:
        evaluator: the network and its limits.
        options: of every group, then of every branch.
        inside: whether a group or branch (column) vanishes with a branch (row).
        branches_stay: no branch is removed or restored.
    """

    evaluator: CostEvaluator
    options: Sequence[GroupOptions]
    inside: BoolArray
    branches_stay: bool = False

    @cached_property
    def ends(self) -> IntArray:
        """Return the last place of each group: the whole group."""
        return np.array([len(option.widths) - 1 for option in self.options], dtype=np.int64)

    @cached_property
    def scale(self) -> IntArray:
        """Return the divisors that make costs of different limits comparable, shape (limits,)."""
        return np.maximum(self.evaluator.allowed, 1)

    def widths(self, places: IntArray) -> IntArray:
        """Look up the widths of a choice, shape (groups,)."""
        return np.array(
            [option.widths[place] for option, place in zip(self.options, places, strict=True)], dtype=np.int64
        )

    def damage(self, places: IntArray) -> float:
        """Sum the damage of a choice."""
        chosen = zip(self.options, places, self.alive(places), strict=True)
        return float(sum(option.damages[place] for option, place, there in chosen if there))

    def alive(self, places: IntArray) -> BoolArray:
        """Return whether each group or branch is outside of all absent branches, shape (groups,)."""
        return ~vanished(self.inside, self.widths(places))

    @cached_property
    def is_branch(self) -> BoolArray:
        """Return whether each option set belongs to a branch, shape (groups,)."""
        return np.asarray(np.arange(len(self.options)) >= len(self.options) - len(self.inside))

    @cached_property
    def around(self) -> BoolArray:
        """Return whether a group or branch (row) vanishes with another (column), shape (groups, groups)."""
        found = np.zeros((len(self.options),) * 2, dtype=np.bool_)
        found[:, self.is_branch] = self.inside.T
        return found

    def movable(self, places: IntArray) -> BoolArray:
        """Return whether each group or branch matters to the choice and may change, shape (groups,)."""
        alive = self.alive(places)
        return alive & ~self.is_branch if self.branches_stay else alive

    def within(self, places: IntArray) -> bool:
        """Return whether a choice is within all limits."""
        return bool(self.evaluator.within(self.widths(places)))

    def moved(self, places: IntArray, groups: IntArray, to: Sequence[int]) -> tuple[IntArray, FloatArray]:
        """Compute widths (moves, groups) and added damages (moves,) if one group alone moves."""
        trials = np.repeat(self.widths(places)[None], len(groups), axis=0)
        pairs = list(zip(groups.tolist(), to, strict=True))
        trials[np.arange(len(pairs)), groups] = [self.options[group].widths[place] for group, place in pairs]
        harm = [
            self.options[group].damages[place] - self.options[group].damages[places[group]]
            for group, place in pairs
        ]
        for number in np.flatnonzero(self.is_branch[groups]):
            harm[number] = self.damage(_with(places, *pairs[number])) - self.damage(places)
        return trials, np.array(harm, dtype=np.float64)


def minimise_damage(evaluator: CostEvaluator, options: Sequence[GroupOptions], inside: BoolArray) -> IntArray:
    """Find the widths of least total damage within all limits.

    Args:
        evaluator: the network and the limits.
        options: one per group of the network, then one per branch.
        inside: whether a group or branch (column) vanishes with a branch (row), shape
            ``(branches, options)``.

    Returns:
        Widths, shape ``(options,)``. They are within the limits exactly, and no single group could be
        widened by a step without breaking one. Groups inside an absent branch have some width.

    Raises:
        BudgetError: narrowing the groups one after the other leads to no widths within the limits.
    """
    problem = _Problem(evaluator, options, inside)
    places = _uniform(problem)
    best, best_damage, idle = places, problem.damage(places), 0
    for _ in range(_PROGRAMMES):
        answer = _solve(problem, places)
        if answer is None:
            break
        feasible = _required(problem, _feasible(problem, answer))
        damage = problem.damage(feasible)
        idle = 0 if damage < (1 - _GAIN) * best_damage else idle + 1
        if damage < best_damage:
            best, best_damage = feasible, damage
        if idle == _IDLE or np.array_equal(answer, places):
            break
        places = answer
    best = _exchange(problem, _required(problem, _feasible(problem, best)), _EXCHANGES)
    return problem.widths(_turn_branches(problem, best))


def _required(problem: _Problem, places: IntArray | None) -> IntArray:
    """Return a feasible choice.

    Raises:
        BudgetError: there is none.
    """
    if places is not None:
        return places
    evaluator = problem.evaluator
    least = problem.widths(np.zeros(len(problem.options), dtype=np.int64))
    needs = zip(evaluator.limits.items(), evaluator.limited(least).tolist(), strict=True)
    beyond = [
        f"{amount_words(name, need)}, and at most {amount_words(name, allowed)} may remain"
        for (name, allowed), need in needs
        if need > allowed
    ]
    raise BudgetError(
        f"no available widths are within the budget: at the smallest ones the network needs "
        f"{'; '.join(beyond)}; "
        "allow more, or fewer channels (min_channels)"
    )


def _uniform(problem: _Problem) -> IntArray:
    """Choose about the same share of every group, as large as the limits allow (20 bisections).

    All branches are present if the limits can be met so, and absent otherwise.
    """
    all_present = np.where(problem.is_branch, problem.ends, 0)
    start = all_present if problem.within(all_present) else 0 * all_present
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if problem.within(_share(problem, start, middle)):
            low = middle
        else:
            high = middle
    return _share(problem, start, low)


def _share(problem: _Problem, start: IntArray, share: float) -> IntArray:
    """Choose a share of every group, and the branches of a choice."""
    return np.where(problem.is_branch, start, (problem.ends * share).astype(np.int64))


def _with(places: IntArray, group: int, place: int) -> IntArray:
    """Return a choice in which one group moved."""
    moved = places.copy()
    moved[group] = place
    return moved


def _solve(problem: _Problem, places: IntArray) -> IntArray | None:
    """Solve the integer programme whose costs are linearised around a choice.

    One binary variable for each option of each group. Minimise the sum of damages; each group takes exactly
    one option; for each limit, the summed changes of cost fit into what the current choice leaves.

    Returns:
        The best choice; ``None`` if there is none.
    """
    evaluator, options = problem.evaluator, problem.options
    sizes = problem.ends + 1
    owner = np.repeat(np.arange(len(options)), sizes)
    now = evaluator.limited(problem.widths(places))
    changes = _changes(problem, places, owner) / problem.scale
    slack = (evaluator.allowed - now) / problem.scale
    one_each = sparse.csr_array(
        (np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(options), len(owner))
    )
    damages = np.concatenate([option.damages for option in options])
    starts = np.cumsum([0, *sizes[:-1]])
    gone, links = _gone(problem, starts, len(owner))
    least = np.zeros(len(owner) + len(gone))
    if problem.branches_stay:
        least[(starts + places)[problem.is_branch]] = 1
    result = milp(
        np.append(damages, np.zeros(len(gone))),
        integrality=np.ones(len(owner) + len(gone)),
        bounds=Bounds(least, 1),
        constraints=[
            LinearConstraint(sparse.hstack([one_each, _columns(gone, len(options))]), 1, 1),
            LinearConstraint(np.hstack([changes.T, np.zeros((len(slack), len(gone)))]), -np.inf, slack),
            *links,
        ],
        # Presolving takes longer than it saves, twice as long for a hundred groups.
        options={"node_limit": _NODES, "mip_rel_gap": 1e-4, "presolve": False},
    )
    if result.x is None:
        return None
    answer = np.array(
        [int(np.argmax(result.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)],
        dtype=np.int64,
    )
    answer[gone] = np.where(result.x[len(owner) :] > 0.5, places[gone], answer[gone])
    return answer


def _changes(problem: _Problem, places: IntArray, owner: IntArray) -> IntArray:
    """Compute how each option of each group, alone, changes the limited costs of a choice.

    The options of a group inside absent branches are compared with those branches present, since only then
    they count. ``owner`` is the group of each option, shape (options,). Returns shape (options, limits).
    """
    limited, now = problem.evaluator.limited, problem.widths(places)
    trials, _ = problem.moved(places, owner, [place for end in problem.ends for place in range(end + 1)])
    trials[problem.around[owner]] = 1
    return limited(trials) - limited(np.where(problem.around, 1, now))[owner]


def _gone(problem: _Problem, starts: IntArray, count: int) -> tuple[IntArray, list[LinearConstraint]]:
    """Constrain the variable "gone" of each group in a branch: 1 exactly if an enclosing branch is absent.

    Args:
        problem: the network and its options.
        starts: the variable of the first option of each group, which for a branch is its absence.
        count: number of variables for options; those for being gone follow.

    Returns:
        The groups and branches inside others, and the constraints: gone if any branch around is absent, and
        not otherwise.
    """
    gone = np.flatnonzero(problem.around.any(axis=1))
    if not len(gone):
        return gone, []
    place, around = np.nonzero(problem.around[gone])
    absence = starts[around]
    pairs = np.arange(len(place))
    each = sparse.csr_array(
        (
            np.append(np.ones(len(pairs)), -np.ones(len(pairs))),
            (np.append(pairs, pairs), np.append(count + place, absence)),
        ),
        shape=(len(pairs), count + len(gone)),
    )
    some = sparse.csr_array(
        (
            np.append(np.ones(len(gone)), -np.ones(len(pairs))),
            (np.append(np.arange(len(gone)), place), np.append(count + np.arange(len(gone)), absence)),
        ),
        shape=(len(gone), count + len(gone)),
    )
    return gone, [LinearConstraint(each, 0, np.inf), LinearConstraint(some, -np.inf, 0)]


def _columns(gone: IntArray, groups: int) -> sparse.csr_array:
    """Build the columns that count being gone as an option, shape (groups, gone)."""
    return sparse.csr_array((np.ones(len(gone)), (gone, np.arange(len(gone)))), shape=(groups, len(gone)))


def _feasible(problem: _Problem, places: IntArray, held: int | None = None) -> IntArray | None:
    """Change a choice step by step until it is within the limits and no group can be widened.

    Each step of the first loop narrows a group and each step of the second widens one, so both end. A group
    that is ``held`` is narrowed only when no other can be.

    Returns:
        The feasible choice; ``None`` if a limit is broken with all groups at their least widths.
    """
    while not problem.within(places):
        if not (places > 0)[problem.movable(places)].any():
            return None
        places = _narrowed(problem, places, held)
    while (wider := _widened(problem, places)) is not None:
        places = wider
    return places


def _narrowed(problem: _Problem, places: IntArray, held: int | None) -> IntArray:
    """Narrow, by one place, the groups with the least added damage for the cost that this saves."""
    movable = np.flatnonzero((places > 0) & problem.movable(places))
    if len(movable) > 1:
        movable = movable[movable != held]
    trials, harm = problem.moved(places, movable, (places[movable] - 1).tolist())
    now = problem.evaluator.limited(problem.widths(places)).astype(np.float64)
    broken = now > problem.evaluator.allowed
    saved = (now - problem.evaluator.limited(trials)) / problem.scale
    excess = (now - problem.evaluator.allowed) / problem.scale
    chosen = movable[_best_moves(problem, harm, saved[:, broken], excess[broken])]
    narrower = places.copy()
    narrower[chosen] -= 1
    return narrower


def _widened(problem: _Problem, places: IntArray) -> IntArray | None:
    """Widen, by one place, the groups with the most damage undone for the cost; ``None`` if none fits."""
    movable = np.flatnonzero((places < problem.ends) & problem.movable(places))
    if not len(movable):
        return None
    trials, harm = problem.moved(places, movable, (places[movable] + 1).tolist())
    # A branch with very narrow groups can do more damage than none.
    fits = np.asarray(problem.evaluator.within(trials), dtype=np.bool_) & (harm <= 0)
    movable, trials, harm = movable[fits], trials[fits], harm[fits]
    if not len(movable):
        return None
    now = problem.evaluator.limited(problem.widths(places)).astype(np.float64)
    added = (problem.evaluator.limited(trials) - now) / problem.scale
    slack = (problem.evaluator.allowed - now) / problem.scale
    chosen = movable[_best_moves(problem, harm, added, slack)]
    wider = places.copy()
    wider[chosen] += 1
    if len(chosen) > 1 and not problem.within(wider):
        wider[chosen[1:]] -= 1  # together they cost more than the sum
    return wider


def _best_moves(problem: _Problem, harm: FloatArray, change: FloatArray, distance: FloatArray) -> IntArray:
    """Select moves in the order of damage per change of cost.

    Where limits are far and groups are many, several groups move together: an eighth of all, as long as their
    changes sum up to at most half of the distance to each limit. At least one move is selected.

    Args:
        problem: the network and its options.
        harm: added damage of each move, shape (moves,); negative where damage is undone.
        change: how far each move goes toward each limit, shape (moves, limits).
        distance: how far each limit is, shape (limits,).
    """
    # A device runs some groups faster when they are wider: narrowing them saves nothing.
    change = np.maximum(change, 0.0)
    order = np.argsort(harm / (change.sum(axis=1) + 1e-12), kind="stable")
    order = order[: max(1, len(problem.options) // _AT_ONCE)]
    far = (np.cumsum(change[order], axis=0) <= distance / 2).all(axis=1)
    return order[: max(1, int(far.sum()))]


def _turn_branches(problem: _Problem, places: IntArray) -> IntArray:
    """Remove or restore one branch at a time, and choose the groups again; keep what lowers the damage."""
    branches = np.flatnonzero(problem.is_branch).tolist()
    settled = replace(problem, branches_stay=True)
    damage, tried, unchanged = problem.damage(places), 0, 0
    for branch in itertools.cycle(branches):
        if unchanged == len(branches) or tried >= _TURNS:  # a whole round without success
            break
        unchanged += 1
        for turned in _turned(problem, places, branch):
            tried += 1
            trial = _feasible(settled, turned)
            if trial is None:
                continue
            answer = _solve(settled, trial)
            solved = None if answer is None else _feasible(settled, answer)
            trial = _exchange(settled, trial if solved is None else solved, _EXCHANGES // 10)
            if problem.damage(trial) < damage:
                places, damage, unchanged = trial, problem.damage(trial), 0
                break
    return places


def _turned(problem: _Problem, places: IntArray, branch: int) -> list[IntArray]:
    """List the choices in which a branch is removed or restored; branches inside it are present or absent."""
    if not problem.alive(places)[branch]:
        return []
    turned = _with(places, branch, 1 - int(places[branch]))
    if not turned[branch]:
        return [turned]
    within = problem.around[:, branch] & problem.is_branch
    return [np.where(within, place, turned) for place in (1, 0)] if within.any() else [turned]


def _exchange(problem: _Problem, places: IntArray, most: int) -> IntArray:
    """Move one group at a time, near or far, and adjust the others; keep what lowers the damage.

    At most ``most`` moves are tried.
    """
    damage, tried, unchanged = problem.damage(places), 0, 0
    moves = _worthwhile(problem, places)
    for group in itertools.cycle(range(len(problem.options))):
        if unchanged == len(problem.options):  # a whole round without success
            break
        unchanged += 1
        for place in moves[group]:
            if tried == most:
                return places
            tried += 1
            feasible = _feasible(problem, _with(places, group, place), held=group)
            if feasible is not None and problem.damage(feasible) < damage:
                places, damage, unchanged = feasible, problem.damage(feasible), 0
                moves = _worthwhile(problem, places)
                break
    return places


def _worthwhile(problem: _Problem, places: IntArray) -> list[list[int]]:
    """List the places that each group may move to with a chance to lower the damage.

    All of them, where they are few enough to try. Otherwise a move is estimated: what exceeds a limit after
    it is saved by other groups, and what it leaves is spent on them, at the best price (damage per cost) of
    any single move of another group. A move that does not lower the damage under some limit, even at that
    price, is left out.
    """
    reach = [
        _distances(int(place), int(end)) if there else []
        for place, end, there in zip(places, problem.ends, problem.movable(places), strict=True)
    ]
    if sum(map(len, reach)) <= _EXCHANGES:
        return reach
    groups = len(problem.options)
    owner = np.repeat(np.arange(groups), [len(there) for there in reach])
    widths, harm = problem.moved(places, owner, list(itertools.chain(*reach)))
    now = problem.evaluator.limited(problem.widths(places))
    slacks = problem.evaluator.allowed - now
    worth = np.ones(len(owner), dtype=np.bool_)
    for cost, slack in zip((problem.evaluator.limited(widths) - now).T, slacks, strict=True):
        price = np.divide(harm, cost, out=np.full(len(owner), np.inf), where=cost != 0)
        saving = _least_of_others(np.where(cost < 0, -price, np.inf), owner, groups)
        spending = np.maximum(-_least_of_others(np.where(cost > 0, price, np.inf), owner, groups), 0)
        beyond = np.maximum(cost - slack, 0)
        given_up = np.multiply(saving, beyond, out=np.zeros(len(owner)), where=beyond > 0)
        gained = spending * np.maximum(slack - cost, 0)
        worth &= harm + given_up - gained < 0
    return [
        [place for place, good in zip(there, worth[owner == group], strict=True) if good]
        for group, there in enumerate(reach)
    ]


def _least_of_others(values: FloatArray, owner: IntArray, groups: int) -> FloatArray:
    """Return, for each value, the minimum over all other groups; infinite if there are none."""
    least = np.full(groups, np.inf)
    np.minimum.at(least, owner, values)
    first, second = np.sort(np.append(least, np.inf))[:2]
    return np.asarray(np.where(np.arange(groups) == np.argmin(least), second, first)[owner])


def _distances(place: int, end: int) -> list[int]:
    """List the places that are 1, 2, 4, ... steps away, on both sides.

    >>> _distances(2, 5)
    [1, 3, 0, 4]
    """
    steps = [1 << power for power in range(end.bit_length())]
    return [there for step in steps for there in (place - step, place + step) if 0 <= there <= end]
