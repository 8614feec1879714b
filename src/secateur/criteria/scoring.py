"""Score the channels of a network, which is left exactly as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur._compat import tree_map_only
from secateur.arguments import check_arguments
from secateur.batches import LossFunction, labels_of, own_loss, split_batch, split_with_targets
from secateur.criteria.base import Criterion, Needs, Reduction, resolve
from secateur.criteria.score_collector import ScoreCollector, collector_of
from secateur.criteria.scores import Scores
from secateur.devices import device_of
from secateur.errors import SecateurError, UsageError
from secateur.graph.capture.obstacles import explain_call, find_wrong_inputs
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.graph.cutting.fit import refuse_misfit
from secateur.ranks import Ranks, split_across_ranks
from secateur.untouched import untouched

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph

Batches = Iterable[Any]
"""Batches as :mod:`secateur.batches` describes them."""


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "taylor",
    batches: Batches | None = None,
    loss_fn: LossFunction | None = None,
    *,
    reduction: Reduction = "mean",
    max_batches: int | None = None,
    across_ranks: bool = False,
) -> Scores:
    """Score every channel of every prunable group.

    The network is run in evaluation mode and left as it was: parameters, their ``.grad`` and
    ``requires_grad``, modes, hooks and the state of the random number generators are the same afterwards,
    also on failure. No parameter gradient is computed where a criterion does not need it.

    Args:
        model: the network that was traced, or a wrapper with the network in its ``module``.
        graph: its channel graph.
        criterion: a registered name, or a criterion object.
        batches: pairs of inputs and targets, where inputs are a tensor, a tuple of arguments or a mapping
            of named arguments, batch first; or mappings of named arguments with the labels among them.
            Criteria without gradients and targets also take inputs alone. Data-free criteria need none.
        loss_fn: called with the network's output and the targets; with the output and the whole batch
            where batches are mappings. Without it, such batches use the ``loss`` that the network returns.
        reduction: whether the loss is the ``"mean"`` or the ``"sum"`` over a batch.
        max_batches: how many batches to use; all of them by default.
        across_ranks: whether the processes of a distributed run share the work: all of them call this with
            the same batches, each runs a part of every batch, and all get the same scores.

    Returns:
        Raw scores; see :meth:`secateur.criteria.Scores.normalized`.

    Raises:
        UsageError: the criterion is unknown, batches or the loss are missing, the graph is no graph or of
            another network, batches have no dimension for examples, or a score is NaN or infinite.

    >>> from secateur.graph import trace
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> graph = trace(model, torch.ones(1, 3))
    >>> score(model, graph, "magnitude")["0"].shape
    torch.Size([4])
    >>> batches = [(torch.ones(8, 3), torch.ones(8, 2))]
    >>> score(model, graph, "taylor", batches, nn.functional.mse_loss)["0"].shape
    torch.Size([4])
    """
    check_arguments(model=model, graph=graph)
    chosen = resolve(criterion)
    ranks = Ranks(across_ranks)
    collector = collector_of(model, graph, chosen, reduction, ranks)
    refuse_misfit(collector.model, graph)
    if chosen.needs is Needs.NOTHING:
        return collector.scores()
    if batches is None:
        raise UsageError(f"{chosen.name} needs batches of data; pass batches=, or choose 'magnitude'")
    needs_loss = chosen.needs is not Needs.FORWARD
    inner = collector.model
    place = device_of(inner)
    with ExitStack() as stack:
        # A loader that shuffles draws random numbers, and the forward pass may change the model.
        stack.enter_context(untouched(inner))
        stack.enter_context(mode_of(inner, training=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(needs_loss))
        stack.enter_context(_requiring_grad(collector.observer.sources))
        stack.enter_context(collector)
        seen = False
        for share in islice(split_across_ranks(batches, ranks), max_batches):
            seen = True
            collector.expects(share.total)
            if share.examples:
                _pass(collector, share.batch, place, loss_fn)
        if not seen:
            raise UsageError(f"there are no batches to compute {chosen.name} on; pass at least one")
        return collector.scores()


def _pass(collector: ScoreCollector, batch: Any, device: torch.device, loss_fn: LossFunction | None) -> None:
    """Run one forward pass and, for a loss, the backward pass; both once more if the observer needs it."""
    criterion = collector.criterion
    needs_loss = criterion.needs is not Needs.FORWARD
    if needs_loss and loss_fn is None and not isinstance(batch, Mapping):
        raise UsageError(f"{criterion.name} needs a loss; pass loss_fn=, for example F.cross_entropy")
    if needs_loss or criterion.needs_targets:
        inputs, targets = split_with_targets(batch, criterion.name)
    else:
        inputs, targets = split_batch(batch)
    inputs, targets = tree_map_only(Tensor, lambda tensor: tensor.to(device), (inputs, targets))
    if criterion.needs_targets:
        collector.targets(labels_of(targets))
    for _ in range(2):
        outputs = _called(collector.model, inputs)
        if needs_loss:
            collector.observer.backward(outputs, targets, loss_fn or own_loss)
        if not collector.observer.needs_another_pass():
            return


def _called(model: nn.Module, inputs: Any) -> Any:
    """Call the network with copies of the inputs of a batch, which a forward pass may write to."""
    wrong = find_wrong_inputs(inputs)
    if wrong:
        raise UsageError(f"the network cannot be called with a batch: {wrong}")
    args, kwargs = tree_map_only(Tensor, torch.clone, call_arguments(inputs))
    try:
        return model(*args, **kwargs)
    except SecateurError:
        raise
    except Exception as error:
        failure = explain_call(model, inputs)
        if failure is None:
            raise
        raise UsageError(f"the network cannot be called with a batch: {failure}") from error


@contextmanager
def _requiring_grad(tensors: list[Tensor]) -> Iterator[None]:
    """Let gradients reach tensors that are not trained."""
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
