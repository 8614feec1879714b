from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.errors import UsageError
from secateur.training.distillation import Teacher
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import FitSettings, OptimizerSettings


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, generator=draw), torch.randint(0, 3, (8,), generator=draw)) for _ in range(count)
    ]


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_the_paper(weight: float, temperature: float) -> None:
    teacher, (inputs, targets) = nn.Linear(5, 3), batches(1)[0]
    outputs = torch.randn(8, 3, dtype=torch.float64).float()
    own = cross_entropy(outputs, targets)
    found = Teacher(teacher, weight, temperature).join(own, outputs, inputs)
    p = torch.softmax(teacher(inputs).double() / temperature, 1)
    q = torch.softmax(outputs.double() / temperature, 1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = (1 - weight) * own + weight * temperature**2 * divergence
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_student_learns_the_answers_and_not_the_targets() -> None:
    teacher = nn.Linear(5, 3)
    student = nn.Linear(5, 3)
    data = batches()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    settings = FitSettings(epochs=200, optimizer=OptimizerSettings(learning_rate=0.1))
    fit(student, data, settings, FitOptions(teacher=Teacher(teacher, weight=1.0)))
    inputs = torch.cat([x for x, _ in data])
    with torch.no_grad():
        wanted, found = (torch.softmax(net(inputs), 1) for net in (teacher, student))
    assert float((wanted - found).abs().max()) < 0.02
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_answers_in_evaluation_mode_and_gets_its_modes_back() -> None:
    seen: list[bool] = []
    teacher = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    teacher.train()
    teacher[0].eval()
    teacher[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    fit(
        nn.Linear(5, 3), batches(), FitSettings(epochs=1).with_rate(0.1), FitOptions(teacher=Teacher(teacher))
    )
    assert seen == [False] * 4
    assert (teacher.training, teacher[0].training, teacher[1].training) == (True, False, True)


def test_only_the_main_answer_of_a_network_with_auxiliary_heads_is_taught() -> None:
    teacher, (inputs, _) = nn.Linear(5, 3), batches(1)[0]
    taught, outputs = Teacher(teacher, 0.5), torch.randn(8, 3)
    own = torch.tensor(1.0)
    assert taught.join(own, (outputs, None), inputs) == taught.join(own, outputs, inputs)


def test_with_flip_the_teacher_averages_an_image_and_the_flipped_image() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, outputs = torch.randn(8, 1, 3, 4), torch.randn(8, 3)
    columns_reversed = torch.stack([images[..., 3 - column] for column in range(4)], -1)
    mean = (teacher(images) + teacher(columns_reversed)).detach() / 2
    taught = Teacher(teacher, 1.0, 2.0, flip=True)
    found = taught.scores(images, taught.outputs(images))
    torch.testing.assert_close(found, mean)
    assert not found.requires_grad
    divergence = torch.nn.functional.kl_div(
        (outputs / 2).log_softmax(1), (mean / 2).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(taught.join(torch.tensor(9.0), outputs, images), 4 * divergence)


def test_with_flip_too_only_the_main_output_counts() -> None:
    class TwoHeads(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x.flatten(1) * 100

    taught, image = Teacher(TwoHeads(), flip=True), torch.tensor([[[[1.0, 5.0]]]])
    found = taught.scores(image, taught.outputs(image))
    assert found.tolist() == [[3.0, 3.0]]


def test_only_images_are_flipped() -> None:
    taught, rows = Teacher(nn.Linear(5, 3), flip=True), torch.randn(8, 5)
    with pytest.raises(UsageError, match=r"not \(8, 5\); switch it off"):
        taught.scores(rows, taught.outputs(rows))


@pytest.mark.parametrize(("flip", "passes"), [(False, 1), (True, 2)])
def test_scores_and_outputs_of_the_teacher_come_from_one_pass(flip: bool, passes: int) -> None:
    inputs: list[Tensor] = []
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    teacher.register_forward_hook(lambda _module, args, _result: inputs.extend(args))
    images, outputs, own = torch.randn(8, 1, 3, 4), torch.randn(8, 3), torch.tensor(1.0)
    taught = Teacher(teacher, 0.5, flip=flip, outputs_weight=2.0)
    found = taught.join(own, outputs, images)
    assert len(inputs) == passes
    scores = replace(taught, outputs_weight=0.0).join(own, outputs, images)
    every = replace(taught, weight=0.0).join(torch.tensor(0.0), outputs, images)
    torch.testing.assert_close(found, scores + every)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (1.5, 1.0), (0.5, 0.0)])
def test_senseless_constants_are_refused(weight: float, temperature: float) -> None:
    with pytest.raises(UsageError, match="weight|temperature"):
        Teacher(nn.Linear(1, 1), weight, temperature)
