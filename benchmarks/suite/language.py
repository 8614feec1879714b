"""Perplexity of a language model after a cut, without training.

A Llama-like network is cut to shares of its body (all parameters but the embeddings). All ways see the same
blocks of the calibration text, which are drawn at random, in the same run; perplexity is that of the first
blocks of the test text: the mean of the next-token loss over all tokens of a block but the first, with no
context from before the block. Ways of Secateur order channels by the error of the refitted layers that read
them, measure width curves, and fit these layers by least squares. The others are written as their papers say,
on the same channels:

- ``weight norm``: the same share of every MLP and attention, by the norm of the weights (the example of
  Torch-Pruning for Llama);
- ``wanda``: the same share of every MLP and attention, by weight times norm of the activation, added over a
  column (arXiv 2306.11695);
- ``flap``: fluctuation, standardised within each layer and compared over all of them, with the mean of what
  was removed as a bias (arXiv 2312.11983);
- ``llm-pruner``: first-order Taylor of the weights, the same share of every layer but the first four and the
  last two (arXiv 2305.11627);
- ``shortgpt``: whole layers by block influence (arXiv 2403.03853);
- ``attention``: attentions one after the other, each time the one without which a block of text is predicted
  best (the second stage of 2SSP, arXiv 2501.17771); only where attentions alone are enough;
- ``same share + least squares``: the same share of every MLP by the order of ``wanda``, and our fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import data_path
from benchmarks.tables import Table, spread
from secateur.budget import WidthCurves, params_of_body
from secateur.criteria import Scores
from secateur.recovery import CurveOptions, LeastSquares

BEFORE = "before"
FIT = LeastSquares(ridge=sec.Recipe.preset("language").reconstruct_ridge)


class Options(benchmark.Options):
    """Options.

    Attributes:
        network: folder of the network and its tokenizer, as transformers saves them, in the data folder.
        calibration: text that all ways see, in the data folder.
        test: text of the perplexity, in the data folder.
        length: tokens in a block of the calibration text.
        blocks: number of blocks that are drawn.
        test_length: tokens in a block of the test text.
        test_blocks: number of blocks of the test text.
        shares: of the body that are left.
        only: names of ways.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    keep_memory: bool = True
    network: str = "smollm2"
    calibration: str = "wikitext2_valid.txt"
    test: str = "wikitext2_test.txt"
    length: int = 128
    blocks: int = 128
    test_length: int = 256
    test_blocks: int = 32
    shares: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)
    only: tuple[str, ...] = ()


class Row(benchmark.Row):
    """One way, share and draw.

    Attributes:
        way: how the network was cut.
        share: of the body that may remain; 1 for the network before.
        seed: of the calibration text.
        left: share of the body that remains.
        perplexity: on the test text.
    """

    way: str
    share: float
    seed: int
    left: float
    perplexity: float


CASES: Mapping[str, Mapping[str, Any]] = {"smollm2": {}}
QUICK: Mapping[str, Any] = {
    "seeds": (0,),
    "blocks": 8,
    "test_blocks": 1,
    "shares": (0.8,),
    "only": ("same share + least squares",),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """The network and one draw of the calibration text, with what several ways need.

    Attributes:
        model: the network, in evaluation mode.
        graph: its channel graph, in which the stream stays whole.
        text: blocks of the calibration text, shape (blocks, length).
    """

    model: nn.Module
    graph: sec.ChannelGraph
    text: Tensor

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The text as inputs and targets, a few blocks each."""
        return [(part, part) for part in self.text.split(4)]

    @cached_property
    def wanda(self) -> Scores:
        """Scores by |weight| · norm of the activation."""
        return sec.score(self.model, self.graph, "wanda", self.batches)

    @cached_property
    def curves(self) -> WidthCurves:
        """Width curves of all groups, in the order of the error of refitted consumers."""
        scores = sec.score(self.model, self.graph, "reconstruction", self.batches)
        return sec.width_curves(self.model, self.graph, scores, [self.text], CurveOptions(fit=FIT))

    def budget(self, share: float) -> sec.Budget:
        """Return the budget for a share of the body."""
        return sec.Budget(params=params_of_body(self.graph, share))

    def left(self, model: nn.Module, share: float) -> float:
        """Return the share of the body that a smaller network has; biases that compensate do not count."""
        params = sum(
            item.numel() for name, item in model.named_parameters() if not name.endswith("proj.bias")
        )
        body = self.budget(share).amounts(self.graph)["params"]
        whole = self.graph.cost().params
        return 1 - (whole - params) / (whole - body) * (1 - share)

    @property
    def layers(self) -> int:
        """The number of layers."""
        numbers = (re.match(r"model\.layers\.(\d+)\.", name) for name in self.graph.tensors)
        return 1 + max(int(found[1]) for found in numbers if found)


def loss_of(outputs: Any, ids: Tensor) -> Tensor:
    """Compute the mean loss of predicting every token of some blocks but the first."""
    scores = outputs.logits[:, :-1].float()
    return F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor) -> float:
    """Compute the perplexity of blocks, shape (blocks, length), one block at a time."""
    return math.exp(sum(float(loss_of(model(block[None]), block[None])) for block in text) / len(text))


def free(subject: Subject, share: float) -> nn.Module:
    """Cut to the widths of least summed damage, and fit."""
    plan = sec.make_plan(subject.graph, subject.curves, subject.budget(share))
    return _fitted(subject, plan)


def uniform(subject: Subject, share: float) -> nn.Module:
    """Cut to the widths of least summed damage that are the same in all layers, and fit."""
    widths = sec.Widths(uniform_widths=True)
    plan = sec.make_plan(subject.graph, subject.curves, subject.budget(share), widths=widths)
    return _fitted(subject, plan)


def same_share_fitted(subject: Subject, share: float) -> nn.Module:
    """Cut the same share of every MLP, and fit."""
    widths = sec.Widths(only=["*.mlp.*"])
    plan = sec.make_plan(
        subject.graph, subject.wanda, subject.budget(share), widths=widths, allocation="uniform"
    )
    return _fitted(subject, plan)


def weight_norm(subject: Subject, share: float) -> nn.Module:
    """Cut the same share of every layer by the norm of the weights."""
    return _same_share(subject, share, sec.score(subject.model, subject.graph, "magnitude"))


def wanda(subject: Subject, share: float) -> nn.Module:
    """Cut the same share of every layer by |weight| · norm of the activation."""
    return _same_share(subject, share, subject.wanda)


def llm_pruner(subject: Subject, share: float) -> nn.Module:
    """Cut the same share of all but the first and last layers by first-order Taylor of the weights."""
    scores = sec.score(subject.model, subject.graph, "taylor-weight", subject.batches, loss_of)
    stay = [*range(4), *range(subject.layers - 2, subject.layers)]
    return _same_share(subject, share, scores, sec.Widths(ignore=[f"model.layers.{one}" for one in stay]))


def flap(subject: Subject, share: float) -> nn.Module:
    """Cut by standardised fluctuation over all layers, and add the mean of what was removed as a bias."""
    raw = sec.score(subject.model, subject.graph, "flap", subject.batches)
    scores = {name: (item - item.mean()) / item.std(correction=0) for name, item in raw.items()}
    plan = sec.make_plan(subject.graph, scores, subject.budget(share), normalize="none")
    small = sec.apply_plan(subject.model, plan)
    readers = {name for name in plan.removed for name in _readers(subject.graph, name)}
    means = _means(subject, readers)
    modules, smaller = dict(subject.model.named_modules()), dict(small.named_modules())
    for name in readers:
        dims = plan.kept_slots[f"{name}.weight", 1]
        gone = torch.ones(len(means[name]), dtype=torch.bool)
        gone[torch.from_numpy(dims)] = False
        weight = modules[name].get_parameter("weight").detach()
        smaller[name].bias = nn.Parameter(weight[:, gone] @ means[name][gone])
    return small


def shortgpt(subject: Subject, share: float) -> nn.Module:
    """Remove the layers that change the stream least, as many as needed."""
    influence = torch.zeros(subject.layers)

    def note(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            influence[number] += float((1 - torch.cosine_similarity(inputs[0], after, dim=-1)).mean())

        return hook

    with ExitStack() as stack, torch.no_grad():
        for number in range(subject.layers):
            layer = subject.model.get_submodule(f"model.layers.{number}")
            stack.callback(layer.register_forward_hook(note(number)).remove)
        for inputs, _ in subject.batches:
            subject.model(inputs)
    parts = [
        [
            branch.name
            for branch in subject.graph.branches
            if branch.name.startswith(f"model.layers.{number}.")
        ]
        for number in influence.argsort().tolist()
    ]
    return sec.apply_plan(subject.model, _until_within(subject, share, parts))


def attention(subject: Subject, share: float) -> nn.Module | None:
    """Remove the attentions without which one block is predicted best, one after the other."""
    names = [branch.name for branch in subject.graph.branches if branch.name.endswith("self_attn")]
    limit = subject.budget(share).amounts(subject.graph)["params"]
    gone: list[str] = []
    while sec.PruningPlan(subject.graph, {}, tuple(gone)).cost_after.params > limit:
        left = [name for name in names if name not in gone]
        if not left:
            return None
        gone.append(min(left, key=lambda name: _loss_without(subject, [*gone, name])))
    return sec.apply_plan(subject.model, sec.PruningPlan(subject.graph, {}, tuple(gone)))


WAYS: Mapping[str, Callable[[Subject, float], nn.Module | None]] = {
    "free": free,
    "uniform": uniform,
    "same share + least squares": same_share_fitted,
    "weight norm": weight_norm,
    "wanda": wanda,
    "flap": flap,
    "llm-pruner": llm_pruner,
    "shortgpt": shortgpt,
    "attention": attention,
}


def _fitted(subject: Subject, plan: sec.PruningPlan) -> nn.Module:
    small = sec.apply_plan(subject.model, plan)
    sec.reconstruct(subject.model, small, plan, [subject.text], FIT)
    return small


def _same_share(
    subject: Subject, share: float, scores: Scores, widths: sec.Widths | None = None
) -> nn.Module:
    plan = sec.make_plan(subject.graph, scores, subject.budget(share), widths=widths, allocation="uniform")
    return sec.apply_plan(subject.model, plan)


def _readers(graph: sec.ChannelGraph, group: str) -> list[str]:
    """List the modules that contract over a group's channels."""
    consumers = graph[group].roles(sec.graph.Role.CONSUMER)
    return sorted({member.tensor.rpartition(".")[0] for member in consumers})


def _means(subject: Subject, modules: set[str]) -> dict[str, Tensor]:
    """Average the inputs of some modules over the calibration text."""
    sums: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + inputs[0].mean((0, 1)) * len(inputs[0])

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in modules:
            stack.callback(subject.model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        for inputs, _ in subject.batches:
            subject.model(inputs)
    return {name: total / len(subject.text) for name, total in sums.items()}


def _until_within(subject: Subject, share: float, parts: Sequence[Sequence[str]]) -> sec.PruningPlan:
    """Remove branches, part by part, until the rest is within the budget."""
    limit = subject.budget(share).amounts(subject.graph)["params"]
    for count in range(len(parts) + 1):
        plan = sec.PruningPlan(subject.graph, {}, tuple(chain.from_iterable(parts[:count])))
        if plan.cost_after.params <= limit:
            return plan
    raise SystemExit(f"the layers without branches are more than {share:.0%} of the body")


@torch.no_grad()
def _loss_without(subject: Subject, attentions: Sequence[str]) -> float:
    """Compute the loss of the first block with some attentions left out."""

    def nothing(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return torch.zeros_like(output[0]), *output[1:]

    with ExitStack() as stack:
        for name in attentions:
            stack.callback(subject.model.get_submodule(name).register_forward_hook(nothing).remove)
        return float(loss_of(subject.model(subject.text[:1]), subject.text[:1]))


def run(options: Options) -> Iterator[Row]:
    """Cut to every share in every way, for each draw of the calibration text."""
    model, tokenizer = opened(options)
    valid = blocks_of(tokenizer, options.calibration, options.length)
    test = blocks_of(tokenizer, options.test, options.test_length)[: options.test_blocks]
    if not options.measured(way=BEFORE):
        yield Row(way=BEFORE, share=1, seed=0, left=1, perplexity=perplexity(model, test))
    for seed, subject in subjects(options, model, valid):
        for way in options.only or tuple(WAYS):
            for share in options.shares:
                if options.measured(way=way, share=share, seed=seed):
                    continue
                small = WAYS[way](subject, share)
                if small is not None:
                    left = subject.left(small, share)
                    yield Row(way=way, share=share, seed=seed, left=left, perplexity=perplexity(small, test))


def opened(options: Options) -> tuple[nn.Module, Any]:
    """Load the network, in evaluation mode, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = data_path(options.network)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def subjects(options: Options, model: nn.Module, valid: Tensor) -> Iterator[tuple[int, Subject]]:
    """Draw blocks of the calibration text for each seed."""
    graph = sec.trace(model, valid[:1, :16], ignore=["model.embed_tokens"])
    for seed in options.seeds:
        drawn = torch.randperm(len(valid), generator=torch.Generator().manual_seed(seed))[: options.blocks]
        yield seed, Subject(model, graph, valid[drawn])


def blocks_of(tokenizer: Any, name: str, length: int) -> Tensor:
    """Tokenize a text of the data folder, with the marks of WikiText around signs undone, and divide it.

    Returns:
        Shape (blocks, length); what is left at the end is dropped.
    """
    text = data_path(name).read_text(encoding="utf-8")
    for sign in "-,.":
        text = text.replace(f" @{sign}@ ", sign)
    ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // length * length].view(-1, length)


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each way and a column for each share."""
    shares = sorted({row.share for row in rows if row.way != BEFORE}, reverse=True)
    before = [row.perplexity for row in rows if row.way == BEFORE]
    lines = [(BEFORE, *[f"{value:.1f}" for value in before], *[""] * (len(shares) - 1))] if before else []
    for way in dict.fromkeys(row.way for row in rows if row.way != BEFORE):
        cells = [[row.perplexity for row in rows if (row.way, row.share) == (way, share)] for share in shares]
        lines.append((way, *(spread(values) if values else "not possible" for values in cells)))
    return Table(("way", *(f"perplexity at {share:.0%} of the body" for share in shares)), lines)
