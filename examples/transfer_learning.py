"""Transfer learning on folders of images: published weights, new classes, pruning, fine-tuning."""

from __future__ import annotations

import argparse

import secateur as sec
from secateur.data import DataSettings, open_data
from secateur.inputs import InputSpec
from secateur.models import ModelSpec
from secateur.recipes import Training
from secateur.training.evaluate import evaluate
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import FitSettings


def main() -> None:
    """Make a checkpoint from ``DIR/{train,test}/<class>/*``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DIR")
    parser.add_argument("--model", default="torchvision:squeezenet1_1")
    parser.add_argument("--weights", help="'default' fetches them; or a file; none if left out")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--out", default="small.safetensors")
    options = parser.parse_args()

    shape = InputSpec((3, options.size, options.size))
    data = open_data(options.data, shape, DataSettings(batch_size=16))
    spec = ModelSpec.parse(options.model, classes=len(data.classes))
    model = sec.build(options.model, classes=len(data.classes), weights=options.weights)

    training, validation = data.training_batches(), data.validation_batches()
    fit(model, training, FitSettings(epochs=options.epochs), FitOptions(validation=validation))
    before = evaluate(model, data.test_batches())

    recipe = sec.Recipe.preset(
        "default", finetune={"epochs": options.epochs, "optimizer": {"learning_rate": 5e-4}}
    )
    result = sec.prune(
        model,
        next(iter(validation))[0][:2],
        sec.Budget(macs=options.macs),
        batches=Training(training, calibration=data.training_batches(augment=False), validation=validation),
        recipe=recipe,
    )
    after = evaluate(result.model, data.test_batches())

    print(f"# {result.verification}")
    print(f"{'':10}{'accuracy':>10}{'parameters':>14}{'MACs':>16}")
    for name, judged, need in (
        ("before", before, result.cost_before),
        ("after", after, result.cost_after),
    ):
        print(f"{name:10}{judged.metric:>10.1%}{need.params:>14,}{need.macs:>16,}")
    sec.save(options.out, result.model, builder=spec, input_size=shape.size, classes=data.classes)
    sec.load(options.out)


if __name__ == "__main__":
    main()
