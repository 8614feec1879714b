from __future__ import annotations

from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.batches import LossFunction
from secateur.errors import TrainingError
from secateur.training.losses import main_output, with_auxiliaries

Answers = namedtuple("Answers", "logits aux2 aux1")
scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
targets = torch.tensor([0, 3, 1, 1])
SUMMED = partial(cross_entropy, reduction="sum")


def test_two_heads_count_three_tenths_each() -> None:
    expected = sum(w * cross_entropy(s, targets) for w, s in zip((1, 0.3, 0.3), scores, strict=True))
    torch.testing.assert_close(with_auxiliaries(cross_entropy)(Answers(*scores), targets), expected)


def test_one_head_counts_four_tenths_and_absent_heads_nothing() -> None:
    expected = cross_entropy(scores[0], targets) + 0.4 * cross_entropy(scores[1], targets)
    loss = with_auxiliaries(cross_entropy)
    torch.testing.assert_close(loss((scores[0], scores[1]), targets), expected)
    torch.testing.assert_close(loss((scores[0], None), targets), cross_entropy(scores[0], targets))
    torch.testing.assert_close(loss(scores[0], targets), cross_entropy(scores[0], targets))


def test_other_answers_are_refused() -> None:
    assert torch.equal(main_output([scores[0]]), scores[0])
    for answer in ({"out": 1.0}, (), None):
        with pytest.raises(TrainingError, match="wrap the network"):
            main_output(answer)


def test_the_main_output_of_mappings_is_not_their_loss() -> None:
    assert torch.equal(main_output({"loss": torch.tensor(1.0), "logits": scores[0]}), scores[0])


def test_a_batch_that_is_a_mapping_has_the_loss_of_the_network() -> None:
    batch, answer = {"x": scores[0], "labels": targets}, {"loss": torch.tensor(3.0), "logits": scores[0]}
    assert with_auxiliaries(cross_entropy, own=True)(answer, batch) == 3.0
    loss = with_auxiliaries(lambda found, given: cross_entropy(found["logits"], given["labels"]))
    assert torch.equal(loss(answer, batch), cross_entropy(scores[0], targets))


@pytest.mark.parametrize("loss_fn", [cross_entropy, nn.CrossEntropyLoss(), SUMMED])
def test_a_network_may_score_more_classes_than_mixed_targets_have(loss_fn: LossFunction) -> None:
    """Weights of two classes give what the same weights with zeros give, also for auxiliary heads."""
    scores, weights = torch.randn(2, 4, 7), torch.tensor([0.3, 0.7]).expand(4, 2)
    padded = torch.cat([weights, torch.zeros(4, 5)], 1)
    for outputs in (scores[0], (scores[0], scores[1])):
        found = with_auxiliaries(loss_fn)(outputs, weights)
        assert torch.equal(found, with_auxiliaries(loss_fn)(outputs, padded))
        main = loss_fn(scores[0], padded)
        expected = main if isinstance(outputs, Tensor) else main + 0.4 * loss_fn(scores[1], padded)
        torch.testing.assert_close(found, expected)


def test_targets_of_other_losses_stay_as_they_are() -> None:
    seen: list[Tensor] = []
    total = with_auxiliaries(lambda outputs, targets: seen.append(targets) or outputs.sum())
    total(torch.zeros(2, 3), torch.ones(2, 1))
    assert seen[0].shape == (2, 1)
