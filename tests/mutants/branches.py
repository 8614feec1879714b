"""Break what finds and removes residual branches: ``python -m tests.mutants.branches [--share 0.1]``.

A cut is right if the smaller network computes what one of the networks computes that have some branches
deleted in their code. A mutant survives if a cut is verified and wrong.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sec
from tests.graph.residual_networks import (
    Attending,
    Basic,
    Chain,
    Gated,
    Nested,
    Parallel,
    Whole,
    filled_from,
    randomised,
)
from tests.mutants.operators import Mutant, NotChangedError, broken, mutants

FILES = ("graph/additions.py", "graph/branches.py", "graph/substitutes.py", "graph/checking/masked.py")
"""Files whose functions are changed, relative to the package."""

CAUGHT, HARMLESS, UNNOTICED = "caught", "harmless", "UNNOTICED"

SECONDS = 120

Case = tuple[nn.Module, Tensor, list[nn.Module]]
"""A network, its inputs, and all networks that it may become."""


class _TooLong(BaseException):
    """The mutant takes too long."""


def cases() -> list[Case]:
    """Make the networks."""
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))

    makers = [
        lambda gone: Basic(6, 5, gone),
        lambda gone: Whole(6, 4, gone),
        lambda gone: Parallel(6, 5, gone),
        lambda gone: Nested(6, 5, gone),
        lambda gone: Gated(6, 5, gone),
    ]
    either = (False, True)
    absent = [either, either, _subsets("left", "right"), _subsets("inner", "outer"), either]

    def chain(*gone: Any) -> nn.Module:
        return Chain(*(make(flag) for make, flag in zip(makers, gone, strict=True)))

    return [
        _case(images, chain, absent),
        _case(rows, lambda gone: Attending(6, 5, gone), [_subsets("attention", "mlp")]),
    ]


def _subsets(*names: str) -> list[tuple[str, ...]]:
    return [found for count in range(len(names) + 1) for found in itertools.combinations(names, count)]


def _case(inputs: Tensor, make: Callable[..., nn.Module], absent: Sequence[Sequence[Any]]) -> Case:
    model = randomised(make(*(choices[0] for choices in absent)))
    return model, inputs, [filled_from(make(*chosen), model) for chosen in itertools.product(*absent)]


def tried(mutant: Mutant, networks: Sequence[Case]) -> tuple[str, str]:
    """Trace the networks with broken code, remove each branch and all of them, and judge the cuts."""

    def too_long(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    outcome = HARMLESS, ""
    try:
        for case in networks:
            found = _tried(mutant, case)
            if found[0] == UNNOTICED:
                return found
            outcome = found if found[0] == CAUGHT else outcome
    except NotChangedError:
        return HARMLESS, "the same code"
    except _TooLong:
        return CAUGHT, "it takes too long"
    except Exception as error:  # noqa: BLE001 - broken code may fail in any way
        return CAUGHT, f"{type(error).__name__}: {error}"[:150]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome


def _tried(mutant: Mutant, case: Case) -> tuple[str, str]:
    model, inputs, possible = case
    with broken(mutant):
        graph = sec.trace(model, inputs)
        names = [branch.name for branch in graph.branches if branch.prunable]
        cuts = []
        for without in [[name] for name in names] + [names]:
            plan = sec.PruningPlan(graph, {}, without)
            small = sec.apply_plan(model, plan)
            cuts.append((without, small, sec.verify(model, small, plan, inputs)))
    expected = [other(inputs) for other in possible]
    refused = [str(check) for _, _, check in cuts if not check.ok]
    for without, small, check in cuts:
        if check.ok and not any(torch.allclose(small(inputs), one, atol=1e-4) for one in expected):
            return UNNOTICED, f"without {without}"
    lost = [branch.reason for branch in graph.branches if branch.reason]
    return (CAUGHT, str((refused or lost)[0])[:150]) if refused or lost else (HARMLESS, "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the mutants, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    networks = cases()
    counts: Counter[str] = Counter()
    for mutant in mutants(files=FILES):
        if zlib.crc32(mutant.name.encode()) % 1000 >= 1000 * options.share:
            continue
        outcome, reason = tried(mutant, networks)
        counts[outcome] += 1
        sys.stdout.write(f"{outcome:10} {mutant.name}: {reason}\n")
    sys.stdout.write(f"{dict(counts)}\n")


if __name__ == "__main__":
    main()
