"""Knowledge distillation: a small student learns from the probabilities of a large teacher.

A label says which digit an image shows; a trained teacher also says which others it resembles.
Divided by a temperature T before the softmax, the teacher's logits become soft targets, and the
student minimises a mixture of two losses:

    (1 - alpha) * crossentropy(label, student)
        + alpha * T² * KL(softmax(teacher / T) || softmax(student / T))

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.

Three nested runs with the same keys: the teacher, the student from scratch and the student
distilled. What to expect: on digits, which are easy, the two students end within about a point of
each other, in accuracy and in how often they agree with the teacher: the lesson is in the curves.
Less than a minute of computing on two cores.

    mlflow run . -e distill --env-manager local -P temperature=3
"""

from typing import Annotated

import keras
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.extras import require
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Images, Seed

SAMPLES = 200  # training images that set the ranges of the quantized activations


def teacher_net(data: Data) -> keras.Model:
    """A convolutional net; like the student, it gives logits."""
    layers = keras.layers
    body = [
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.3),
    ]
    head = layers.Dense(data.classes)
    return keras.Sequential([keras.Input(data.input_shape), *body, head], name="teacher")


def student_net(data: Data) -> keras.Model:
    """One small hidden layer."""
    body = [keras.layers.Flatten(), keras.layers.Dense(16, activation="relu")]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([keras.Input(data.input_shape), *body, head], name="student")


def main(
    data: Images = "digits",
    epochs: PositiveInt = 30,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 5e-3,
    temperature: PositiveFloat = 4.0,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    quantize: bool = False,
    seed: Seed = 0,
) -> None:
    """Trains a teacher, a student from scratch and the same student with the teacher's help.

    Args:
        epochs: Epochs of each of the three trainings.
        lr: Learning rate of Adam.
        temperature: T, which softens teacher and student; above 0.
        alpha: Weight of the distillation part of the loss, from 0 to 1.
        quantize: Convert the distilled student to an int8 file too; needs the extra "compression".
    """
    params = dict(locals())
    if quantize:
        require("compression")
    images = load(data, seed=seed)

    def train(model: keras.Model) -> None:
        model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy"])
        settings = {"epochs": epochs, "batch_size": batch_size, "verbose": "auto"}
        fit(model, images.train, images.validation, **settings)

    count = 4 if quantize else 3
    with mka.technique("distill", params, dataset=images, variants=count) as technique:
        with technique.variant("teacher"):
            teacher = teacher_net(images)
            train(teacher)
            taught = technique.finish(teacher, *images.test)

        with technique.variant("scratch"):
            student = student_net(images)
            train(student)
            technique.finish(student, *images.test, reference=teacher)

        settings = {"temperature": temperature, "alpha": alpha}
        with technique.variant("distilled", params=settings):
            student = student_net(images)
            soft = mka.SoftTargets(temperature)
            train(mka.Distiller(teacher, student, soft, student_loss_weight=1 - alpha))
            student.compile(loss=crossentropy)  # what it is scored by, as the others are
            lineage = {"reference": teacher, "parent_model_id": taught.info.model_id}
            distilled = technique.finish(student, *images.test, **lineage)

        if quantize:
            with technique.variant("distilled_int8"):
                file = mka.compression.quantize(
                    student, mka.compression.int8, images.x_train[:SAMPLES]
                )
                lineage = {"reference": student, "parent_model_id": distilled.info.model_id}
                technique.finish_file(file.content, *images.test, **lineage)

        technique.compare(candidates=["scratch", "distilled"])
        accuracy, agreement = technique.final("accuracy"), technique.final("agreement")
        parameters = technique.final("parameters")
        technique.conclude(
            f"The distilled student reaches {accuracy['distilled']:.1%} on the test split "
            f"(from scratch {accuracy['scratch']:.1%}, teacher {accuracy['teacher']:.1%}) "
            f"and agrees with its teacher on {agreement['distilled']:.1%} of the images "
            f"(from scratch {agreement['scratch']:.1%}).",
            mka.Claim(
                "accuracy_kept",
                "test accuracy of the distilled student, relative to its teacher's",
                accuracy["distilled"] / accuracy["teacher"],
                at_least=0.95,
            ),
            mka.Claim(
                "parameters",
                "parameters of the student, relative to its teacher's",
                parameters["distilled"] / parameters["teacher"],
                at_most=0.02,
            ),
            mka.Claim(
                "accuracy_gain",
                "test accuracy of the student distilled minus from scratch; none is promised",
                accuracy["distilled"] - accuracy["scratch"],
                at_least=-0.02,
                at_most=0.02,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)
