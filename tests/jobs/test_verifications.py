from __future__ import annotations

from secateur.cli.tables import verification_line
from secateur.jobs.verifications import combined
from secateur.verification import Verification

WHOLE = Verification(2e-12, 1e-8, 300, 4, inputs=3, modes=("evaluation", "training"))
IN_PART = Verification(
    5e-7, 1e-4, 100, 2, inputs=2, precision="float64 and the model's own precision", not_checked=("a", "b")
)


def test_all_cuts_together_are_as_good_as_the_worst() -> None:
    found = combined([WHOLE, IN_PART])
    assert found["ok"]
    assert (found["max_error"], found["tolerance"]) == (5e-7, 1e-4)  # nearer to its limit
    assert (found["outputs"], found["inputs"], found["modes"]) == (400, 2, ["evaluation"])
    assert found["precision"] == IN_PART.precision
    assert found["not_checked"] == ["a", "b"]


def test_one_wrong_cut_is_enough() -> None:
    assert not combined([WHOLE, Verification(1e-3, 1e-8, 300, 4)])["ok"]


def test_the_closing_line_says_what_was_compared_and_what_was_not() -> None:
    line = verification_line(combined([WHOLE, IN_PART]))
    assert line == (
        "verified: after each of 2 cuts the smaller network equals the original with the removed channels "
        "masked (6 channels; largest relative difference 5.0e-07, allowed 1e-04; 400 outputs, 2 inputs, "
        "evaluation mode, float64 and the model's own precision); not checked: a; b"
    )
    nothing = verification_line(combined([]))
    assert nothing == "the network was within the budget already; nothing was cut"
    wrong = combined([Verification(1e-3, 1e-8, 300, 4)])
    assert verification_line(wrong).startswith("NOT VERIFIED: after the cut")


def test_a_network_that_fails_names_no_outputs() -> None:
    failed = Verification(float("inf"), 1e-8, 0, 4, inputs=0, modes=(), problem="the forward pass fails")
    assert str(failed) == (
        "WRONG: the smaller network DIFFERS FROM the original with 4 channels masked (the forward pass fails)"
    )
