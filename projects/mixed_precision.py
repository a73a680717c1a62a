"""Mixed precision: 16 bits for the activations of a net, 32 bits for its weights.

Layers compute in float16 or bfloat16, weights stay float32. bfloat16 has the range of float32;
float16 ends at 65504 and loses gradients below 6e-8, so the loss is multiplied by a scale before
the gradient is taken. If a gradient is not finite the update is skipped and the scale halved; after
a number of good updates it is doubled. Micikevicius et al. 2018, arXiv:1710.03740.

Three nested runs with the same keys: float32, mixed_bfloat16, mixed_float16. What to expect: the
same accuracy within the noise of training, half the bytes between layers, and in the float16 run
`optimizer/loss_scale` falling from a value that is too high on purpose, while
`optimizer/skipped_updates` counts. What not to expect: speed. GPUs have units for these types; a
CPU without such instructions converts to float32 and back, and `train/step_ms` shows the cost. Half
a minute of computing on two cores.

    mlflow run . -e mixed_precision --env-manager local -P initial_scale=1024
"""

from typing import Any

import keras
import numpy as np
from pydantic import PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data, policy: str) -> keras.Model:
    """Layers of a dtype policy; the logits are float32, since a softmax needs the digits."""
    body = data.entrance(policy)
    body += [keras.layers.Dense(128, activation="relu", dtype=policy) for _ in range(2)]
    head = keras.layers.Dense(data.classes, dtype="float32")
    return keras.Sequential([*body, head])


def optimizer(policy: str, lr: float, scale: float, growth_steps: int) -> Any:
    """Adam, with loss scaling where the type needs it."""
    adam = keras.optimizers.Adam(lr)
    if policy != "mixed_float16":
        return adam
    return keras.optimizers.LossScaleOptimizer(
        adam, initial_scale=scale, dynamic_growth_steps=growth_steps
    )


def activation_bytes(model: keras.Model) -> float:
    """Bytes of all layers' outputs for one example: what the backward pass has to keep.

    Counted from shapes and types: TensorFlow does not tell how much memory of a CPU it holds.
    """
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    outputs = [layer.output for layer in model.layers]
    return float(sum(np.prod(each.shape[1:]) * sizes[each.dtype] for each in outputs))


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 15,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 2e-3,
    initial_scale: PositiveFloat = 2.0**24,
    growth_steps: PositiveInt = 100,
    seed: Seed = 0,
) -> None:
    """Trains one net in float32, in mixed_bfloat16 and in mixed_float16.

    Args:
        epochs: Epochs of each training.
        lr: Learning rate of Adam.
        initial_scale: Initial scale of the loss in float16; Keras' own default is 32768.
        growth_steps: Good updates in a row after which the scale is doubled.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    policies = ("float32", "mixed_bfloat16", "mixed_float16")

    with mka.technique("mixed_precision", params, dataset=images, variants=3) as technique:
        for policy in policies:
            name = policy.removeprefix("mixed_")
            with technique.variant(name, params={"policy": policy}):
                model = net(images, policy)
                adam = optimizer(policy, lr, initial_scale, growth_steps)
                model.compile(adam, crossentropy, metrics=["accuracy"])
                fit(model, images.train, images.validation, epochs=epochs, batch_size=batch_size)
                scores = {"activation_bytes": activation_bytes(model)}
                technique.finish(model, *images.test, scores=scores)

        technique.compare(curves=("optimizer/loss_scale", "train/loss", "val/accuracy"))
        accuracy, kept = technique.final("accuracy"), technique.final("activation_bytes")
        runs = technique.variants
        step_ms = {name: mka.curve("train/step_ms", run=run).median() for name, run in runs.items()}
        technique.conclude(
            f"Test accuracy in float32 {accuracy['float32']:.1%}, bfloat16 "
            f"{accuracy['bfloat16']:.1%}, float16 {accuracy['float16']:.1%}; a step takes "
            f"{step_ms['float32']:.2g}, {step_ms['bfloat16']:.2g} and {step_ms['float16']:.2g} ms "
            "on this machine.",
            mka.Claim(
                "accuracy_difference",
                "largest difference of an accuracy on the test split from that of float32",
                max(abs(accuracy[name] - accuracy["float32"]) for name in runs),
                at_most=0.03,
            ),
            mka.Claim(
                "activation_bytes",
                "bytes of all layers' outputs in float16, relative to those in float32",
                kept["float16"] / kept["float32"],
                at_most=0.55,
            ),
            mka.Claim(
                "skipped_updates",
                "updates that float16 skipped while its scale was too high",
                mka.curve("optimizer/skipped_updates", run=runs["float16"]).max(),
                at_least=1,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)
