"""Why a budget cannot be met, in words."""

from __future__ import annotations

from dataclasses import replace

from secateur.budget.limits import WORDS, Meter, words_for
from secateur.budget.room import Rules


def shortfall(meter: Meter, rules: Rules) -> str:
    """What would remain at least, against what may, and which rules are in the way; one line.

    Args:
        meter: the network and the limits, of which at least one cannot be met.
        rules: what was asked of the widths.

    Returns:
        The line.
    """
    room = rules.room(meter.graph)
    now, least = meter.named(room.widths), meter.least_of(room.widths, room.least)
    unmet = [name for name, allowed in meter.amounts.items() if least[name] > allowed]
    parts = [
        f"{WORDS[name]}: at most {_share(name, allowed, now[name])} may remain, "
        f"{'but' if name in unmet else 'and'} the least possible is {_share(name, least[name], now[name])}"
        for name, allowed in meter.amounts.items()
    ]
    return f"no plan meets the budget. {'; '.join(parts)}. {_causes(meter, rules, least, unmet)}"


def _share(name: str, number: int, whole: int) -> str:
    amount = words_for(name, number) if name == "latency" else f"{number:,}"
    return f"{amount} ({number / max(1, whole):.2%})"


def _causes(meter: Meter, rules: Rules, least: dict[str, int], unmet: list[str]) -> str:
    """The rules without which less of an unmet quantity would remain."""
    free = Rules()
    lifted = {
        "round_to": replace(rules, round_to=1, caps=None),
        "min_channels": replace(rules, min_channels=1, caps=None),
        "floors": replace(rules, floors=None, caps=None),
        "ignore": replace(rules, ignore=(), caps=None),
        "only": replace(rules, only=(), caps=None),
        "groups without scores": replace(rules, unscored=frozenset(), caps=None),
    }

    def gain(other: Rules) -> str:
        found = meter.named(other.room(meter.graph).least)
        return ", ".join(words_for(name, found[name]) for name in unmet if found[name] < least[name])

    single = [f"{name} (else {gain(other)})" for name, other in lifted.items() if gain(other)]
    if single:
        return f"Held up by {' and '.join(single)}"
    if gain(free):
        strict = [name for name, other in lifted.items() if other != replace(rules, caps=None)]
        return f"Held up by {' and '.join(strict)} together (else {gain(free)})"
    return "What is frozen, and one channel of every prunable group, need that much"
