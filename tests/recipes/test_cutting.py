from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur import surgery
from secateur.errors import VerificationError
from secateur.recipes import Cut, cutting
from secateur.verification import Expectation, Verification


def test_a_cut_in_place_equals_a_cut_of_a_copy(net: nn.Sequential, example: Tensor) -> None:
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2], "7": [0]})
    expected = sec.apply_plan(net, plan)
    verification = cutting.cut(net, plan, example)
    assert verification.ok
    assert verification.channels_removed == 3
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_the_network_itself_is_checked_not_a_copy(
    net: nn.Sequential, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[nn.Module] = []
    check = Expectation.check

    def noted(self: Expectation, pruned: nn.Module) -> Verification:
        checked.append(pruned)
        return check(self, pruned)

    monkeypatch.setattr(Expectation, "check", noted)
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2]})
    copies: list[object] = []
    copy_with = surgery.copy_with
    monkeypatch.setattr(surgery, "copy_with", lambda *a, **k: copies.append(a) or copy_with(*a, **k))
    cutting.cut(net, plan, example)
    assert [id(item) for item in checked] == [id(net)]
    assert not copies


def memory_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    """Everything that a cut may touch: identities beside copies of the values."""
    held: list[object] = []
    for tensor in [*net.parameters(), *net.buffers()]:
        held += [id(tensor), tensor.detach().clone(), dict(vars(tensor)), tensor.grad, id(tensor.grad)]
    for module in net.modules():
        held += [{name: value for name, value in vars(module).items() if not name.startswith("_")}]
    for parameter, entry in optimizer.state.items():
        held += [
            id(parameter),
            id(entry),
            *(item for pair in entry.items() for item in (pair[0], id(pair[1]))),
        ]
    held += [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    return held


def same(before: list[object], after: list[object]) -> bool:
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("failure", ["wrong", "raises", "interrupted"])
def test_a_cut_that_is_wrong_is_taken_back_to_the_bit(
    net: nn.Sequential, example: Tensor, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    net(example).square().sum().backward()
    optimizer.step()
    net[0].weight.tag = "kept"
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2], "7": [0]})
    output = net.eval()(example).detach()
    before = memory_of(net, optimizer)

    def check(self: Expectation, pruned: nn.Module) -> Verification:
        if failure == "raises":
            raise RuntimeError("shapes do not fit")
        if failure == "interrupted":
            raise KeyboardInterrupt
        return Verification(0.5, 1e-4, 6, 3)

    monkeypatch.setattr(Expectation, "check", check)
    expected = KeyboardInterrupt if failure == "interrupted" else VerificationError
    with pytest.raises(expected, match="left as it was" if failure != "interrupted" else None):
        cutting.cut(net, plan, example, optimizer)
    assert same(before, memory_of(net, optimizer))
    assert torch.equal(net(example), output)
    net(example).square().sum().backward()
    optimizer.step()


def test_a_cut_reads_as_two_lines(net: nn.Sequential, example: Tensor) -> None:
    plan = sec.plan_from(sec.trace(net, example), {"0": [1, 2]})
    first, second = str(Cut(1, 4, plan, Verification(1e-7, 1e-4, 6, 2))).splitlines()
    assert first.startswith("cut 1/4: 2 channels, ")
    assert f"{plan.cost_before.macs:,} to {plan.cost_after.macs:,} MACs" in first
    assert second.strip().startswith("verified: the smaller network equals")
    assert str(Cut(3, None, plan, Verification(1e-7, 1e-4, 6, 2))).startswith("cut 3: ")
