"""Optimizers: eleven ways to turn a gradient into an update, each from several seeds.

SGD; with momentum (Polyak 1964) and Nesterov's (1983), which sum up past gradients; RMSprop (Hinton
2012) and Adam (Kingma, Ba 2014, arXiv:1412.6980), which divide by their recent size; Adam with
other beta 1, beta 2 and epsilon, and AMSGrad (Reddi et al. 2018, arXiv:1904.09237); AdamW, which
decays weights apart from the gradient (Loshchilov, Hutter 2017, arXiv:1711.05101); Lion, which
takes only the sign (Chen et al. 2023, arXiv:2302.06675). Each at a usual learning rate.

One nested run each, with the curves and the model of the first seed and the mean and the spread
over all seeds. What to expect: in so few epochs plain SGD is behind, and momentum catches up at the
same rate. The adaptive ones end within two or three points of each other: on data as easy as digits
the learning rate matters more than the formula. A minute and a half of computing on two cores.

    mlflow run . -e optimizers --env-manager local -P seeds=5
"""

import keras
import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Target


def net(data: Data) -> keras.Model:
    """One hidden layer."""
    body = [*data.entrance(), keras.layers.Dense(64, activation="relu")]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([*body, head])


def optimizers(lr: float) -> dict[str, keras.optimizers.Optimizer]:
    """By name; `lr` is the rate of Adam."""
    choices = keras.optimizers
    return {
        "sgd": choices.SGD(4 * lr),
        "momentum": choices.SGD(4 * lr, momentum=0.9),
        "nesterov": choices.SGD(4 * lr, momentum=0.9, nesterov=True),
        "rmsprop": choices.RMSprop(lr),
        "adam": choices.Adam(lr),
        "adam_b1_0": choices.Adam(lr, beta_1=0.0),  # no momentum
        "adam_b2_09": choices.Adam(lr, beta_2=0.9),  # a short memory of sizes
        "adam_eps": choices.Adam(lr, epsilon=1e-2),  # near momentum where gradients are small
        "amsgrad": choices.Adam(lr, amsgrad=True),
        "adamw": choices.AdamW(lr, weight_decay=0.01),
        "lion": choices.Lion(lr / 5),
    }


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 8,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 5e-3,
    seeds: PositiveInt = 3,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains one net with each optimizer, from several seeds.

    Args:
        epochs: Epochs of each training.
        lr: Learning rate of Adam; the others' follow from it.
        seeds: Trainings with each optimizer.
        seed: The first one, of weights and order of examples; and of the validation split.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    variants = optimizers(lr)
    loss, mean = {}, {}

    with mka.technique("optimizers", params, dataset=images, variants=len(variants)) as technique:
        for name, optimizer in variants.items():
            model = net(images)
            model.compile(optimizer, crossentropy, metrics=["accuracy"])
            optimizer.build(model.trainable_variables)
            fresh = [variable.numpy() for variable in optimizer.variables]
            with technique.variant(name) as run:
                losses, accuracies = [], []
                for each in range(seed, seed + seeds):
                    # The compiled step stays; weights, moments and count of updates start anew.
                    keras.utils.set_random_seed(each)
                    model.set_weights(net(images).get_weights())
                    for variable, value in zip(optimizer.variables, fresh, strict=True):
                        variable.assign(value)
                    history = model.fit(
                        *images.train,
                        batch_size=batch_size,
                        epochs=epochs,
                        validation_data=images.validation,
                        callbacks=[mka.MlflowLogger()] if each == seed else [],
                        verbose=0,
                    )
                    losses.append(history.history["loss"][-1])
                    answers = keras.ops.convert_to_numpy(model(images.x_test, training=False))
                    accuracies.append(np.mean(answers.argmax(axis=1) == images.y_test))
                    if each == seed:
                        technique.finish(model, *images.test)
                for key, values in {"accuracy": accuracies, "train_loss": losses}.items():
                    run.log_metrics({f"final/{key}_mean": float(np.mean(values))}, step=0)
                    run.log_metrics({f"final/{key}_spread": float(np.std(values))}, step=0)
            loss[name], mean[name] = np.mean(losses), np.mean(accuracies)

        winner = technique.compare()
        adaptive = [mean[name] for name in ("rmsprop", "adam", "amsgrad", "adamw", "lion")]
        technique.conclude(
            f"Test accuracy, mean of {seeds} seeds: SGD {mean['sgd']:.1%}, momentum "
            f"{mean['momentum']:.1%}, Adam {mean['adam']:.1%}, Lion {mean['lion']:.1%}. "
            f"Best on validation, of the first seed: {winner}.",
            mka.Claim(
                "momentum_loss",
                "train/loss of the last epoch with momentum, relative to that of SGD at the same "
                "rate, mean over seeds",
                loss["momentum"] / loss["sgd"],
                at_most=0.5,
            ),
            mka.Claim(
                "adaptive_range",
                "best minus worst mean accuracy on the test split among RMSprop, Adam, AMSGrad, "
                "AdamW and Lion",
                max(adaptive) - min(adaptive),
                at_most=0.03,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)
