"""Learning-rate schedules: eight ways to change the step size while training.

A high rate gets far quickly and then jumps about the minimum; a low one settles, slowly. A schedule
has both: constant, constant then exponential, time-based, step, cosine, linear warm-up then cosine
(Goyal et al. 2017, arXiv:1706.02677), cyclical (Smith 2015, arXiv:1506.01186), and the rate that is
cut where validation no longer improves, which is a callback and not a schedule.

One nested run each, from the same weights and the same order of examples; `learning_curves.png` on
the parent has all their rates in one chart. What to expect: the rate is too high to be kept, so the
constant one ends with several times the loss of the others, and some points of accuracy behind. At
`lr=0.1` it is not, and digits are so easy that no schedule is better than the constant rate. A
minute of computing on two cores.

    mlflow run . -e lr_schedules --env-manager local -P lr=0.1
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data) -> keras.Model:
    """One hidden layer."""
    body = [*data.entrance(), keras.layers.Dense(32, activation="relu")]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([*body, head])


def schedules(lr: float, updates: int) -> dict[str, Any]:
    """What the optimizer takes as its rate; `lr` is the highest rate of each.

    Time-based and step decay are Keras' InverseTimeDecay and ExponentialDecay under other names.
    """

    def part(share: float) -> int:
        return max(1, round(share * updates))

    decays = keras.optimizers.schedules
    return {
        "constant": lr,
        "constant_exponential": mka.ConstantThenExponential(lr, part(1 / 3), part(1 / 6)),
        "time_based": decays.InverseTimeDecay(lr, decay_steps=part(1 / 10), decay_rate=1.0),
        "step": decays.ExponentialDecay(lr, part(1 / 4), decay_rate=0.3, staircase=True),
        "cosine": decays.CosineDecay(lr, updates),
        "warmup_cosine": mka.WarmUp(decays.CosineDecay(lr, part(0.9)), part(0.1)),
        "cyclical": mka.CyclicalRate(lr / 20, lr, step_size=part(1 / 6), policy="triangular2"),
        "plateau": lr,
    }


def deviation(run: mka.Run, schedule: Any) -> float:
    """Largest difference between a rate on record and what the schedule says of that update."""
    rates = mka.curve("optimizer/learning_rate", run=run)
    return max(abs(rate - float(schedule(step - 1))) for step, rate in rates.items())


def reloaded(model: keras.Model) -> keras.Model:
    """The model, compiled, as it comes back from a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        return keras.saving.load_model(Path(folder, "model.keras"))


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 10,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 0.3,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    seed: Seed = 0,
) -> None:
    """Trains one net under each schedule and compares them.

    Args:
        epochs: Epochs of each training.
        lr: The highest rate of each schedule.
        momentum: Momentum of SGD.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    rates = schedules(lr, epochs * -(-len(images.x_train) // batch_size))

    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.3, patience=2)
    losses, recorded, restored = {}, {}, {}
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}

    with mka.technique("lr_schedules", params, dataset=images, variants=len(rates)) as technique:
        for name, rate in rates.items():
            with technique.variant(name) as run:
                model = net(images)
                optimizer = keras.optimizers.SGD(rate, momentum=momentum)
                model.compile(optimizer, crossentropy, metrics=["accuracy"])
                settings["callbacks"] = [plateau] if name == "plateau" else []
                history = fit(model, images.train, images.validation, **settings).history
                technique.finish(model, *images.test)
            losses[name] = history["loss"][-1]
            if callable(rate):
                recorded[name] = deviation(run, rate)
                loaded, steps = reloaded(model).optimizer, int(model.optimizer.iterations)
                restored[name] = abs(float(loaded.learning_rate) - float(rate(steps)))

        technique.compare(curves=("optimizer/learning_rate", "train/loss", "val/accuracy"))
        fallen = np.median([losses[name] for name in recorded])
        worst, best = max(losses, key=losses.__getitem__), min(losses, key=losses.__getitem__)
        technique.conclude(
            f"Loss of the last epoch: {losses[best]:.3g} ({best}) to {losses[worst]:.3g} "
            f"({worst}).",
            mka.Claim(
                "loss_ratio",
                "train/loss of the last epoch under a schedule (median), relative to that under "
                "the constant rate",
                fallen / losses["constant"],
                at_most=0.5,
            ),
            mka.Claim(
                "rate_difference",
                "largest difference between a rate on record and its schedule, relative to lr",
                max(recorded.values()) / lr,
                at_most=1e-6,
            ),
            mka.Claim(
                "reload_difference",
                "difference of the next rate after saving and loading the compiled model",
                max(restored.values()) / lr,
                at_most=1e-6,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)
