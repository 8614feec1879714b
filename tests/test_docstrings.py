"""Every public name says what it takes, gives and raises, and shows it in an example that the tests run."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest

import secateur

RARER = {
    "ablation": "Ablation RankAgreement ablate compare_ranking",
    "budget": "Forecast WidthCurve WidthCurves forecast reachable",
    "criteria": "Scores regularize_scores watch",
    "errors": "CheckpointError DataError ExportError SurgeryError TrainingError",
    "export": "Exported FileCheck export",
    "graph": "Cost Group Member Reader Role register_rule",
    "latency": "Latency LatencyTable Timings compare_latency latency_table",
    "models": "ModelSpec load_weights",
    "plan": "AttributeValue",
    "recipes": "LatencyOptions Measured PruneResult SearchResult Training smallest_within",
    "recovery": "CurveOptions LeastSquares Reconstruction recalibrate",
    "runtimes": "ExportMetadata Runner open_exported",
    "verification": "Expectation Verification",
}
"""What is imported from its module."""

OBJECTS = {name: getattr(secateur, name) for name in secateur.__all__ if name != "__version__"} | {
    name: getattr(import_module(f"secateur.{module}"), name)
    for module, names in RARER.items()
    for name in names.split()
}
FUNCTIONS = [name for name, item in OBJECTS.items() if inspect.isfunction(item)]
CLASSES = [name for name, item in OBJECTS.items() if inspect.isclass(item)]
FROM_PAPERS = ["regularize_scores", "reconstruct", "ablate", "compare_ranking"]

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example):$", re.MULTILINE)


def sections(item: object) -> dict[str, str]:
    """The parts of a docstring by their heading; the example also where it stands bare."""
    text = inspect.getdoc(item) or ""
    parts = _SECTION.split(text)
    found = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    if ">>> " in text:
        found.setdefault("Example", text)
    return found


def entries(section: str) -> set[str]:
    """The names that a section of arguments or attributes describes."""
    return set(re.findall(r"^    \*{0,2}(\w+): \S", section, re.MULTILINE))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = OBJECTS[name]
    parts, signature = sections(function), inspect.signature(function)
    assert parts[""].strip().endswith((".", ":"))
    assert entries(parts.get("Args", "")) == set(signature.parameters)
    assert signature.return_annotation == "None" or parts.get("Returns", "").strip()
    assert re.search(r"^    \w+Error: \S", parts.get("Raises", ""), re.MULTILINE)
    assert ">>> " in parts.get("Example", "")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_holds(name: str) -> None:
    kind = OBJECTS[name]
    parts = sections(kind)
    assert parts[""].strip()
    assert ">>> " in parts.get("Example", "")
    if is_dataclass(kind):
        described = entries(parts.get("Attributes", "")) | entries(parts.get("Args", ""))
        assert {item.name for item in fields(kind) if not item.name.startswith("_")} <= described


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_member_is_described(name: str) -> None:
    for member, value in vars(OBJECTS[name]).items():
        inner = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
        if member.startswith("_") or not inspect.isfunction(inner):
            continue
        parts = sections(inner)
        assert parts[""].strip(), member
        taken = set(inspect.signature(inner).parameters) - {"self", "cls"}
        if len(taken) > 1:
            assert entries(parts.get("Args", "")) == taken, member


@pytest.mark.parametrize("name", FROM_PAPERS)
def test_what_comes_from_a_paper_names_it(name: str) -> None:
    assert re.search(r"arXiv \d{4}\.\d{5}", inspect.getdoc(OBJECTS[name]) or "")
