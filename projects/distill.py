"""Knowledge distillation: a small student learns from what a large teacher finds probable.

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
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load


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
    data: str = "digits",
    epochs: PositiveInt = 30,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 5e-3,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a teacher, a student from scratch and the same student with the teacher's help.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each of the three trainings.
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        temperature: T, which softens teacher and student; above 0.
        alpha: Weight of the distillation part of the loss, from 0 to 1.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "distill"}
    images = load(data, seed=seed)
    dataset = mka.Dataset(images.name, images.digest)

    def train(number: int, variant: str, model: keras.Model) -> None:
        print(f"[{number}/3] {variant}", flush=True)
        crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(lr), loss=crossentropy, metrics=["accuracy"])
        model.fit(
            images.x_train,
            images.y_train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=(images.x_validation, images.y_validation),
            callbacks=[mka.MlflowLogger()],
        )

    with mka.track("distill", params=params, tags=technique) as run:
        run.log_dataset(dataset, context="training")
        test = images.x_test, images.y_test

        with run.child("teacher", tags=technique) as teacher_run:
            keras.utils.set_random_seed(seed)
            teacher = teacher_net(images)
            train(1, "teacher", teacher)
            taught = mka.log_finished_model(
                teacher_run, teacher, *test, name="teacher", dataset=dataset
            )

        with run.child("scratch", tags=technique) as scratch_run:
            keras.utils.set_random_seed(seed)
            student = student_net(images)
            train(2, "student from scratch", student)
            scratch = mka.log_finished_model(
                scratch_run, student, *test, name="scratch", dataset=dataset, reference=teacher
            )

        settings = {"temperature": temperature, "alpha": alpha}
        with run.child("distilled", params=settings, tags=technique) as distilled_run:
            keras.utils.set_random_seed(seed)
            student = student_net(images)
            soft_targets = mka.SoftTargets(temperature)
            distiller = mka.Distiller(student, teacher, soft_targets, alpha=alpha)
            train(3, "student distilled", distiller)
            distilled = mka.log_finished_model(
                distilled_run,
                student,
                *test,
                name="distilled",
                dataset=dataset,
                reference=teacher,
                parent_model_id=taught.info.model_id,
            )

        runs = {"teacher": teacher_run, "scratch": scratch_run, "distilled": distilled_run}
        winner = mka.log_comparison(run, runs, candidates=["scratch", "distilled"])
        result = (
            f"The distilled student reaches {distilled.final['accuracy']:.1%} on the test split "
            f"(from scratch {scratch.final['accuracy']:.1%}, "
            f"teacher {taught.final['accuracy']:.1%}) "
            f"and agrees with its teacher on {distilled.final['agreement']:.1%} of the images "
            f"(from scratch {scratch.final['agreement']:.1%})."
        )
        run.describe(f"{result}\n\nBetter on validation: {winner}.")
    print(result)


if __name__ == "__main__":
    entry_point.run(main)
