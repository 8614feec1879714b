from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.criteria import (
    Criterion,
    GateCriterion,
    Taylor,
    base,
    criterion_names,
    register,
    resolve,
    score,
)
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import Plain, data, gate_gradients, make

OWN = sorted(name for name in criterion_names() if type(resolve(name)).__module__.startswith("secateur."))


def test_every_criterion_is_registered_by_its_name() -> None:
    assert all(resolve(name).name == name for name in criterion_names())


@pytest.mark.parametrize("name", OWN)
def test_every_criterion_says_what_it_is(name: str) -> None:
    text = type(resolve(name)).__doc__
    assert text is not None
    assert len(text.splitlines()[0]) > 20


def test_an_instance_is_taken_as_it_is() -> None:
    criterion = Taylor()
    assert resolve(criterion) is criterion


def test_a_criterion_of_ones_own_takes_ten_lines() -> None:
    @register
    class SignedTaylor(GateCriterion):
        """The mean of the gate gradient, with its sign."""

        name = "signed-taylor"

        def per_example(self, gate: Tensor) -> Tensor:
            return gate

    try:
        net = make(Plain)
        inputs, targets = data(5)
        scores = score(net, trace(net, inputs), "signed-taylor", [(inputs, targets)], F.cross_entropy)
        for name, gate in gate_gradients(net, inputs, targets).items():
            torch.testing.assert_close(scores[name], gate.mean(0), rtol=1e-5, atol=1e-7)
    finally:
        base._REGISTRY.pop("signed-taylor")
    with pytest.raises(UsageError, match="no criterion is called 'signed-taylor'"):
        resolve("signed-taylor")


def test_names_are_not_taken_twice_and_not_left_out() -> None:
    class Impostor(Taylor):
        pass

    with pytest.raises(UsageError, match="called 'taylor' is registered already"):
        register(Impostor)

    class Nameless(GateCriterion):
        def per_example(self, gate: Tensor) -> Tensor:
            return gate

    with pytest.raises(UsageError, match="Nameless has no name"):
        register(Nameless)
    assert register(Taylor) is Taylor
    assert issubclass(Taylor, Criterion)
