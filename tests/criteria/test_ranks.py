from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from secateur.criteria import Scores, score, watch
from secateur.criteria.ranks import Ranks
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import Plain, data, make

CRITERIA = ("taylor", "fisher", "taylor-weight", "activation-std", "mutual-information", "magnitude")
SIZES = (3, 5)


def work(rank: int, folder: str) -> None:
    """One process of two: watches its own examples under DistributedDataParallel."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        net = make(Plain)
        inputs, targets = data(SIZES[rank], seed=rank)
        graph = trace(net, inputs)
        module = torch.nn.parallel.DistributedDataParallel(net)
        for criterion in CRITERIA:
            with watch(module, graph, criterion) as watcher:
                watcher.targets(targets)
                F.cross_entropy(module(inputs), targets).backward()
            torch.save(watcher.scores(across_ranks=True).to_dict(), f"{folder}/{criterion}.{rank}")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_find_together_what_one_would_find_alone(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    net = make(Plain)
    parts = [data(size, seed=rank) for rank, size in enumerate(SIZES)]
    graph = trace(net, parts[0][0])
    for criterion in CRITERIA:
        first, second = (Scores.from_dict(torch.load(tmp_path / f"{criterion}.{rank}")) for rank in range(2))
        assert first == second
        alone = score(net, graph, criterion, parts, F.cross_entropy)
        assert list(first) == list(alone)
        for name in alone:
            torch.testing.assert_close(first[name], alone[name], rtol=1e-5, atol=1e-8)


def test_collecting_without_other_processes_is_refused() -> None:
    with pytest.raises(UsageError, match="no other processes"):
        Ranks(together=True)
