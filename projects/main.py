"""A short tour: one net trained, distilled, pruned and quantized, side by side in one table.

Baseline a convolutional net, trained on the labels distilled a net of a hundredth of its
parameters, taught by its answers too (see `distill`) pruned the baseline trained on while 80 % of
each kernel become zero (see `prune`) quantized the baseline as a LiteRT file of 8-bit integers (see
`quantize`)

One nested run each, with the same keys: the curves of the trainings, and the finished models as
bars. What to expect: on digits, which are easy, all four stay within a few points of accuracy;
their sizes differ by up to a hundred times. A minute of computing on two cores.

    mlflow run . --env-manager local -P epochs=40
"""

import keras
from pydantic import PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy
from projects.data import load
from projects.distill import student_net, teacher_net
from projects.parameters import BatchSize, Images, Seed

SAMPLES = 200  # training images that set the ranges of the quantized activations


def table(technique: mka.Technique) -> str:
    """The finished models, in Markdown."""
    lines = ["| model | accuracy | kB | kB after gzip | ms an image |", "|---|---|---|---|---|"]
    for name, each in technique.finished.items():
        final = each.final
        sizes = f"{final['size_bytes'] / 1000:.1f} | {final['gzip_bytes'] / 1000:.1f}"
        lines.append(
            f"| {name} | {final['accuracy']:.1%} | {sizes} | {final['latency_ms_p50']:.3f} |"
        )
    return "\n".join(lines)


def main(
    data: Images = "digits",
    epochs: PositiveInt = 20,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 5e-3,
    seed: Seed = 0,
) -> None:
    """Trains a net, and makes three smaller ones of it.

    Args:
        epochs: Epochs of each of the three trainings.
        lr: Learning rate of Adam.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    settings = {
        "batch_size": batch_size,
        "epochs": epochs,
        "validation_data": images.validation,
        "callbacks": [mka.MlflowLogger()],
        "verbose": 0,
    }

    def train(model: keras.Model) -> None:
        model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy"])
        model.fit(*images.train, **settings)

    with mka.technique("main", params, dataset=images, variants=4) as technique:
        with technique.variant("baseline"):
            baseline = teacher_net(images)
            train(baseline)
            start = technique.finish(baseline, *images.test)
        lineage = {"reference": baseline, "parent_model_id": start.info.model_id}

        with technique.variant("distilled"):
            student = student_net(images)
            train(mka.Distiller(baseline, student, mka.SoftTargets(temperature=4.0)))
            technique.finish(student, *images.test, **lineage)

        with technique.variant("pruned"):
            pruned = mka.compression.prune(
                baseline, images.train, sparsity=0.8, metrics=["accuracy"], **settings
            )
            technique.finish(pruned.model, *images.test, **lineage)

        with technique.variant("quantized"):
            file = mka.compression.quantize(
                baseline, mka.compression.int8, images.x_train[:SAMPLES]
            )
            technique.finish_file(file.content, *images.test, **lineage)

        technique.compare()
        accuracy, gzip_bytes = technique.final("accuracy"), technique.final("gzip_bytes")
        smallest = min(gzip_bytes, key=gzip_bytes.__getitem__)
        claims = [
            mka.Claim(
                "accuracy_lost",
                "test accuracy that the worst of the smaller models loses",
                max(accuracy["baseline"] - value for value in accuracy.values()),
                at_most=0.06,
            ),
            *(
                mka.Claim(
                    f"{name}_gzip_share",
                    f"bytes of the {name} model after gzip, relative to the baseline's",
                    gzip_bytes[name] / gzip_bytes["baseline"],
                    at_most=0.5,
                )
                for name in gzip_bytes
                if name != "baseline"
            ),
        ]
        technique.conclude(
            f"The {smallest} model is the smallest: {gzip_bytes[smallest] / 1000:.1f} kB after "
            f"gzip instead of {gzip_bytes['baseline'] / 1000:.1f}, test accuracy "
            f"{accuracy[smallest]:.1%} instead of {accuracy['baseline']:.1%}."
            f"\n\n{table(technique)}\n",
            *claims,
        )


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
