from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from secateur.criteria import Scores, criterion_names, resolve, score, watch
from secateur.errors import UsageError
from secateur.graph import trace
from secateur.ranks import Ranks, _fingerprint, rank_batch, split_across_ranks
from secateur.training.context import RunContext
from tests.criteria.nets import Plain, data, make
from tests.processes import in_processes

SIZES = (5, 3, 1)


@given(st.integers(1, 40), st.integers(1, 7))
def test_every_example_is_in_one_part_and_parts_are_even(examples: int, world_size: int) -> None:
    batch = {"inputs": torch.arange(examples), "rest": ([torch.arange(examples)], "words", torch.tensor(1.0))}
    parts = [rank_batch(batch, rank, world_size) for rank in range(world_size)]
    mine = [part.batch["inputs"][: part.examples].tolist() for part in parts]
    assert sorted(number for numbers in mine for number in numbers) == list(range(examples))
    assert max(map(len, mine)) - min(map(len, mine)) <= 1
    assert all(len(part.batch["inputs"]) == max(1, part.examples) for part in parts)
    assert all(torch.equal(part.batch["rest"][0][0], part.batch["inputs"]) for part in parts)
    assert sum(part.weight for part in parts) == pytest.approx(1)


def test_alone_a_batch_is_handed_on_as_it_is() -> None:
    batch = (torch.ones(3), torch.ones(3))
    [part] = split_across_ranks([batch], Ranks())
    assert part.batch is batch
    assert part.weight == 1


def test_collecting_without_other_processes_is_refused() -> None:
    with pytest.raises(UsageError, match="no other processes"):
        Ranks(is_distributed=True)


def talk(context: RunContext) -> dict[str, Any]:
    ranks = context.ranks
    mine = torch.arange(float(2 * ranks.rank)).reshape(-1, 2)  # the first has none
    return {
        "sum": ranks.all_reduce_sum(torch.tensor([ranks.rank, 1])),
        "most": ranks.all_reduce_max(10 - ranks.rank),
        "rows": ranks.all_gather_rows(mine),
        "nothing": ranks.all_gather_rows(torch.zeros(0, 3)),
        "integers": ranks.all_gather_rows(torch.tensor([ranks.rank])),
        "same": ranks.broadcast({"from": ranks.rank, "text": "é" * ranks.rank}),
        "gathered": ranks.all_gather(["x"] * ranks.rank),
        "shared": list(ranks.share_out([10, 20, 30, 40], lambda item: item + ranks.rank)),
        "first": ranks.is_main,
    }


@pytest.mark.slow
def test_processes_tell_each_other_numbers_and_words(tmp_path: Path) -> None:
    found = in_processes(talk, 3, tmp_path)
    assert [member.pop("first") for member in found] == [True, False, False]
    for member in found:
        assert member["sum"].tolist() == [3, 3]
        assert member["most"] == 10
        assert member["rows"].tolist() == [[0, 1], [0, 1], [2, 3]]
        assert member["nothing"].shape == (0, 3)
        assert member["integers"].tolist() == [0, 1, 2]
        assert member["same"] == {"from": 0, "text": ""}
        assert member["gathered"] == [[], ["x"], ["x", "x"]]
        assert member["shared"] == [([10, 20, 30], [10, 21, 32]), ([40], [40])]


def whole_batches() -> list[Any]:
    return [data(size, seed=number) for number, size in enumerate(SIZES)]


def scores_together(context: RunContext) -> dict[str, dict[str, Any]]:
    """Scores by every criterion of batches that are shared out, the last of them too small for all."""
    net, batches = make(Plain), whole_batches()
    graph = trace(net, batches[0][0])
    together = context.ranks.is_distributed
    return {
        name: score(net, graph, name, batches, F.cross_entropy, across_ranks=together).to_dict()
        for name in criterion_names()
        if resolve(name).scores_channels
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_score_like_one(count: int, tmp_path: Path) -> None:
    alone = in_processes(scores_together, 1, tmp_path)[0]
    found = in_processes(scores_together, count, tmp_path)
    for name, expected in alone.items():
        check_close(Scores.from_dict(expected), [Scores.from_dict(member[name]) for member in found])


def check_close(expected: Scores, found: list[Scores]) -> None:
    assert all(member == found[0] for member in found)
    assert list(found[0]) == list(expected)
    assert found[0].unscored == expected.unscored
    for group in expected:
        least = 1e-5 * float(expected[group].abs().max())
        torch.testing.assert_close(found[0][group], expected[group], rtol=1e-5, atol=least)


WATCHED = ("taylor", "taylor-squared", "taylor-weight", "activation-std", "mutual-information", "magnitude")


def watch_own_loop(context: RunContext) -> dict[str, dict[str, Any]]:
    """A loop of one's own under DistributedDataParallel, with an uneven part of one batch in each process."""
    parts = [data(size, seed=rank) for rank, size in enumerate((5, 3))]
    net = make(Plain)
    together = context.ranks.is_distributed
    module = DistributedDataParallel(net) if together else net
    inputs, targets = parts[dist.get_rank()] if together else map(torch.cat, zip(*parts, strict=True))
    graph = trace(net, inputs)
    found = {}
    for name in WATCHED:
        with watch(module, graph, name, across_ranks=together) as watching:
            watching.targets(targets)
            F.cross_entropy(module(inputs), targets).backward()
        found[name] = watching.scores().to_dict()
    return found


@pytest.mark.slow
def test_processes_watch_a_loop_of_ones_own_like_one(tmp_path: Path) -> None:
    alone = in_processes(watch_own_loop, 1, tmp_path)[0]
    found = in_processes(watch_own_loop, 2, tmp_path)
    for name, expected in alone.items():
        check_close(Scores.from_dict(expected), [Scores.from_dict(member[name]) for member in found])


def shares_of_loaders(context: RunContext) -> list[Any]:
    """What becomes of loaders that shuffle with a common seed, without one, and of constants in batches."""
    inputs, targets = torch.randn(12, 3), torch.arange(12)
    weights = torch.ones(4)  # of four classes, in batches of four
    found: list[Any] = []
    for seed in (0, context.ranks.rank):
        loader = DataLoader(
            TensorDataset(inputs, targets),
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        try:
            found.append([part.batch[1] for part in split_across_ranks(loader, context.ranks)])
        except UsageError as error:
            found.append(str(error))
    batches = [(inputs[i : i + 4], targets[i : i + 4], weights) for i in range(0, 12, 4)]
    found.append([list(map(len, part.batch)) for part in split_across_ranks(batches, context.ranks)])
    found.append([list(map(len, part.batch)) for part in split_across_ranks(batches[:1] * 2, context.ranks)])
    found.append([part.examples for part in split_across_ranks([], context.ranks)])
    return found


@pytest.mark.slow
def test_processes_that_are_given_other_batches_are_told_so(tmp_path: Path) -> None:
    found = in_processes(shares_of_loaders, 2, tmp_path)
    assert sorted(torch.cat([part for member in found for part in member[0]]).tolist()) == list(range(12))
    for member in found:
        assert "processes 0 and 1 received different batches" in member[1]
        assert "DataLoader(..., generator=torch.Generator().manual_seed(0))" in member[1]
        assert member[2] == [[2, 2, 4]] * 3
        assert member[3] == [[2, 2, 2]] * 2  # one batch twice says nothing of what is a constant
        assert member[4] == []


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_batches_are_told_apart_by_their_targets(dtype: torch.dtype) -> None:
    one, other = torch.tensor([0, 1]).to(dtype), torch.tensor([1, 1]).to(dtype)
    inputs = torch.randn(2, 3)
    assert _fingerprint((inputs, one)) == _fingerprint((inputs, one.clone()))
    assert _fingerprint((inputs, one)) != _fingerprint((inputs, other))
    if not dtype.is_floating_point:  # images may be changed at random
        assert _fingerprint((inputs, one)) == _fingerprint((inputs + 1, one))
