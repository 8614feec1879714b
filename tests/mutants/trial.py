"""One mutant on one network: traced, cut and verified with broken code, judged with whole code."""

from __future__ import annotations

import copy
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import secateur as sec
from secateur.errors import SecateurError
from secateur.graph import ChannelGraph, tracing
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.rules import find_rule
from secateur.verification import Expectation
from tests.mutants import judge, suite
from tests.mutants.operators import FILES, ROOT, Mutant, NotChangedError, broken

UNNOTICED, HANG, STALE, COSTS = "unnoticed", "hang", "stale", "costs"
VERIFY, TRACE, HARMLESS, UNREACHED = "verify", "trace", "harmless", "unreached"
OUTCOMES = (UNNOTICED, HANG, STALE, COSTS, VERIFY, TRACE, HARMLESS, UNREACHED)
"""What may come of a mutant, the worst first.

``unnoticed``: a wrong cut was verified. ``hang``: more than twenty seconds, or the process died. ``stale``:
the numbers are right, but an attribute of a module or the optimizer's state is not. ``costs``: only predicted
costs are wrong. ``verify``, ``trace``: a wrong cut was found there, or the code failed. ``harmless``: the
same graph, more frozen, or a cut that is right. ``unreached``: no network of the suite runs the changed line.
"""

SAME_GRAPH, SAME_CODE = "the same graph", "the same code"
"""Reasons of mutants that are harmless because they change nothing."""

SECONDS = 20.0


@dataclass
class Prepared:
    """A network, and all that is known of it without any mutant."""

    name: str
    model: nn.Module
    inputs: Any
    held: Mapping[str, Any]
    graph: ChannelGraph
    print_: Any
    opened: frozenset[str]
    lines: Mapping[str, frozenset[int]]
    operators: frozenset[str]
    nodes: int
    checked: bool

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Small networks with something to cut come first, those with a cut that cannot be checked later."""
        return not self.graph.prunable, not self.checked, self.nodes


@dataclass
class Found:
    """What came of a mutant on a network."""

    network: str
    outcome: str
    reason: str = ""

    to_dict = asdict


class _SameGraph(BaseException):
    """The mutant worked out the same graph, so all that follows is the same."""


class _TooLong(BaseException):
    """The mutant takes too long."""


def prepare(name: str) -> Prepared:
    """Trace, cut and verify a network with whole code, and note which lines ran."""
    model, inputs = suite.build(name)
    held: dict[str, Any] = {}
    checked = True
    with _recorded(held), _pretrial() as seen, _traced_lines() as lines:
        graph = sec.trace(model, inputs)
        for number in range(2):
            plan = _plan(graph, name, number)
            small, problem = _cut(model, plan, inputs, number, optimizer=True)
            found = judge.judged(model, small, graph, inputs, planned(plan))
            if problem.startswith("NOT CHECKED"):
                checked, problem = False, ""
            assert not problem, f"{name}: {problem}"
            assert (found.answer, found.reason) == (judge.RIGHT, ""), f"{name}: {found}"
            assert plan.cost_after == sec.cost(small, inputs), name
    program = graph.wiring.program
    nodes = [node for node in program.graph.nodes if hasattr(node.target, "_schema")]
    used = {_rule_name(str(node.target)) for node in nodes} - {""}
    return Prepared(
        name,
        model,
        inputs,
        held,
        graph,
        _fingerprint(seen[-1]),
        frozenset(group.name for group in seen[-1].groups if group.reason is None),
        {file: frozenset(lines.get(str(ROOT / file), ())) for file in FILES},
        frozenset(used),
        len(nodes),
        checked,
    )


def tried(mutant: Mutant, network: Prepared) -> Found:
    """Try a mutant on a network; the process is not to be used for another mutant after a hang."""

    def too_long(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return _tried(mutant, network)
    except NotChangedError:
        return Found(network.name, HARMLESS, SAME_CODE)
    except _TooLong:
        return Found(network.name, HANG, f"more than {SECONDS:.0f} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _tried(mutant: Mutant, network: Prepared) -> Found:
    cuts: list[tuple[sec.PruningPlan | None, nn.Module | None, str, Any]] = []
    same = None if mutant.is_late else network.print_
    with broken(mutant), _replayed(network.held), _pretrial(same):
        try:
            graph = sec.trace(network.model, network.inputs)
        except _SameGraph:
            return Found(network.name, HARMLESS, SAME_GRAPH)
        except Exception as error:  # noqa: BLE001 - broken code may fail in any way
            return Found(network.name, TRACE, f"error: {_named(error)}")
        cuts.extend(_attempt(mutant, network, graph, number) for number in range(2))
    return _judged(network, graph, cuts)


def _attempt(
    mutant: Mutant, network: Prepared, graph: ChannelGraph, number: int
) -> tuple[sec.PruningPlan | None, nn.Module | None, str, Any]:
    """Plan, small network, what was found wrong, and predicted cost; with broken code."""
    plan = None
    try:
        plan = _plan(graph, network.name, number)
        if not plan.keep:
            return plan, None, "", None
        with_optimizer = mutant.file in ("surgery.py", "graph/cutting/tensors.py")
        small, problem = _cut(network.model, plan, network.inputs, number, optimizer=with_optimizer)
        return plan, small, problem, plan.cost_after
    except Exception as error:  # noqa: BLE001 - broken code may fail in any way
        return plan, None, f"error: {_named(error)}", None


def _judged(network: Prepared, graph: ChannelGraph, cuts: list[Any]) -> Found:
    lost = [
        group
        for group in graph.frozen
        if (group.reason or "").startswith("not verified")
        and group.reason not in {other.reason for other in network.graph.frozen}
    ]
    outcome = Found(network.name, HARMLESS, "")
    if lost:
        outcome = Found(network.name, TRACE, f"'{lost[0].name}': {lost[0].reason}"[:200])
    for plan, small, problem, predicted in cuts:
        found = _of_cut(network, small, problem, predicted, plan and planned(plan))
        worse = OUTCOMES.index(found.outcome) < OUTCOMES.index(outcome.outcome)
        if worse or (outcome.outcome == HARMLESS and found.reason):
            outcome = found
        if found.outcome == UNNOTICED and plan is not None:
            kept = {name: list(channels) for name, channels in plan.keep.items()}
            outcome.reason += f"; kept {kept}"[:300]
    return outcome


def planned(plan: sec.PruningPlan) -> judge.Planned:
    """The positions that a plan removes, read off its groups without code that is broken."""
    found: dict[tuple[str, int], frozenset[int]] = {}
    for group in plan.graph.wiring.groups:
        kept = plan.keep.get(group.name)
        gone = np.zeros(0, dtype=int) if kept is None else np.setdiff1d(np.arange(group.channels), kept)
        for member in group.members:
            place = member.tensor, member.dim
            found[place] = found.get(place, frozenset()) | frozenset(member.slots[gone].ravel().tolist())
    return found


def _of_cut(
    network: Prepared,
    small: nn.Module | None,
    problem: str,
    predicted: Any,
    wanted: judge.Planned | None,
) -> Found:
    if small is None:
        return Found(network.name, VERIFY if problem else HARMLESS, problem)
    if problem.startswith("optimizer"):
        return Found(network.name, STALE, problem)
    try:
        verdict = judge.judged(network.model, small, network.graph, network.inputs, wanted)
    except Exception as error:  # noqa: BLE001 - a garbled network may break the judgement
        verdict = judge.Verdict(judge.WRONG, f"cannot be judged: {_named(error)}")
    if problem.startswith("NOT CHECKED") and verdict.answer == judge.RIGHT:
        problem = ""  # a soft-max of one channel tells nothing
    if problem:
        alarm = "" if verdict.answer == judge.WRONG else "a right cut was refused: "
        return Found(network.name, VERIFY, alarm + problem)
    if verdict.answer == judge.WRONG:
        return Found(network.name, UNNOTICED, verdict.reason)
    if verdict.answer == judge.STALE:
        return Found(network.name, STALE, verdict.reason)
    if verdict.keep is not None:
        cost = network.graph.cost({name: len(kept) for name, kept in verdict.keep.items()})
    else:
        try:
            cost = sec.cost(small, network.inputs)
        except SecateurError as error:
            return Found(network.name, STALE, f"its cost cannot be counted: {_named(error)}")
    if predicted != cost:
        return Found(network.name, COSTS, f"{predicted} instead of {cost}")
    return Found(network.name, HARMLESS, verdict.reason)


def _cut(
    model: nn.Module, plan: sec.PruningPlan, inputs: Any, number: int, *, optimizer: bool
) -> tuple[nn.Module, str]:
    """Cut and verify: the first plan in a copy, the second in place; say what verification found wrong."""
    inplace = optimizer and number == 1
    model = copy.deepcopy(model) if inplace else model
    sgd = _filled(model) if optimizer else None
    if inplace:
        expected = Expectation.of(model, plan, inputs)
        small = sec.apply_plan(model, plan, optimizer=sgd, inplace=True)
        shipped = copy.deepcopy(small)
        found = expected.check(small)
    else:
        small = sec.apply_plan(model, plan, optimizer=sgd)
        shipped = copy.deepcopy(small)
        # A check that writes to the network would spoil what follows.
        held = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
        found = sec.verify(model, small, plan, inputs)
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(held[name])
    if not found.ok and plan.keep:
        return shipped, str(found)
    if sgd is not None and (wrong := _unlike_parameters(sgd, small)):
        return shipped, f"optimizer: {wrong}"
    return shipped, ""


def _filled(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose state is a copy of the parameters, so that it tells how it was cut."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        sgd.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    return sgd


def _unlike_parameters(sgd: torch.optim.Optimizer, small: nn.Module) -> str:
    held = {id(item) for group in sgd.param_groups for item in group["params"]}
    for name, parameter in small.named_parameters():
        state = sgd.state.get(parameter, {}).get("momentum_buffer")
        if id(parameter) not in held:
            return f"{name} is not among its parameters"
        if state is None or state.shape != parameter.shape:
            return f"no state of the shape of {name}"
        if not torch.equal(state, parameter) and "original0" not in name:
            return f"the state of {name} is that of other positions"
    return ""


def _plan(graph: ChannelGraph, name: str, number: int) -> sec.PruningPlan:
    """About half of every group, or as few channels as it may have."""
    generator = np.random.default_rng(zlib.crc32(f"{name} {number}".encode()))
    keep = {}
    for group in graph.prunable:
        count = max(group.min_channels, (group.channels + 1) // 2 if number == 0 else 1)
        keep[group.name] = sorted(generator.permutation(group.channels)[:count].tolist())
    return sec.PruningPlan(graph, keep)


def _named(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    return f"{kind}{' (ours)' if isinstance(error, SecateurError) else ''}: {line}"[:160]


def _rule_name(operator: str) -> str:
    from secateur.graph.rules import _TABLE

    find_rule(operator)
    name = ".".join(operator.split(".")[:2])
    return next((item for item in (name, name.removesuffix("_")) if item in _TABLE), "")


_CAPTURES = ("capture", "record_run", "likeness", "derivable")
"""Functions of the tracing that no mutant changes and that take longest: what they gave is held."""


@contextmanager
def _recorded(held: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(tracing, name) for name in _CAPTURES}

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = held[f"{name} {kwargs}"] = function(*args, **kwargs)
            return result

        return call

    with _set({name: recorded(name, function) for name, function in before.items()}):
        yield


@contextmanager
def _replayed(held: Mapping[str, Any]) -> Iterator[None]:
    def replayed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            key = f"{name} {kwargs}"
            return held[key] if key in held else function(*args, **kwargs)

        return call

    with _set({name: replayed(name, getattr(tracing, name)) for name in _CAPTURES}):
        yield


@contextmanager
def _pretrial(same: Any = None) -> Iterator[list[ChannelGraph]]:
    """The graph before the trial cuts; stops where it is a known one."""
    examined = tracing.examined
    seen: list[ChannelGraph] = []

    def call(model: nn.Module, graph: ChannelGraph, *rest: Any) -> ChannelGraph:
        seen.append(graph)
        if same is not None and _fingerprint(graph) == same:
            raise _SameGraph
        return examined(model, graph, *rest)

    with _set({"examined": call}):
        yield seen


@contextmanager
def _set(values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(tracing, name) for name in values}
    try:
        for name, value in values.items():
            setattr(tracing, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(tracing, name, value)


def _fingerprint(graph: ChannelGraph) -> Any:
    """All of a graph that a cut, its check and its costs depend on."""
    wiring = graph.wiring
    groups = [
        (
            group.name,
            group.reason,
            [(item.tensor, item.dim, item.role, item.slots.tobytes()) for item in group.members],
        )
        for group in wiring.groups
    ]
    passes = []
    for one in (wiring.evaluation, wiring.training):
        reads = [
            (r.node, r.argument, r.dim, r.labels.tobytes(), r.module, r.tensor, r.place, r.at_input)
            for r in one.reads
        ]
        statistics = [
            (
                s.node,
                [(place, _labels(value)) for place, value in s.arguments],
                _labels(s.result),
                [(place, inner, labels.tobytes()) for place, inner, labels in s.sizes],
            )
            for s in one.statistics
        ]
        passes.append((reads, statistics, dict(one.flags)))
    attributes = [(a.module, a.name, a.index, a.labels.tobytes()) for a in wiring.attributes]
    widths = graph.widths
    costs = [
        np.asarray(graph.cost_model.evaluate(w)).tolist() for w in (widths, (widths + 1) // 2, widths * 0 + 1)
    ]
    numbers = (wiring.group_of.tobytes(), wiring.channel_of.tobytes())
    return groups, passes, attributes, wiring.rescales, costs, numbers


def _labels(value: Any) -> Any:
    return value.shape, [None if item is None else item.tobytes() for item in value.labels]


@contextmanager
def _traced_lines() -> Iterator[dict[str, set[int]]]:
    """Which lines of the files that are changed run."""
    lines: dict[str, set[int]] = {str(ROOT / file): set() for file in FILES}

    def local(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            lines[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def entered(frame: Any, event: str, _: Any) -> Any:
        held = lines.get(frame.f_code.co_filename)
        if held is None:
            return None
        held.add(frame.f_lineno)
        return local

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield lines
    finally:
        sys.settrace(before)
