"""Clustering: the weights of each kernel of a trained net share a few values.

The weights of a kernel are grouped around k centroids, and every weight is replaced by its own
centroid. Trained on, a centroid gets the sum of its weights' gradients. A kernel is then a table of
k numbers and an index of log2(k) bits a weight, which is what a compressor finds in the file.

Han, Mao, Dally: Deep Compression, 2016, arXiv:1510.00149, section 3.

One nested run for each number of clusters, and the baseline: `layers.json` is the table of layers,
`accuracy_against_size.png` on the parent the result. What to expect: 16 values cost next to no
accuracy and leave a quarter of the compressed file; before it is compressed it is as large as ever,
and the model gets no faster. About two minutes of computing on two cores.

    mlflow run . -e cluster --env-manager local -P clusters=4,8
    mlflow run . -e cluster --env-manager local -P model_uri=models:/digits@champion
"""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.compressing import baseline, conclude, training
from projects.data import load


def counts(clusters: str) -> dict[str, int]:
    """What "8,16" asks for, by the name of the run: `8-values`."""
    try:
        found = [int(text) for text in clusters.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 3:
        raise mka.UserError(
            f"clusters: got {clusters!r}, expected whole numbers of 3 or more with commas between"
        )
    return {f"{count}-values": count for count in found}


def main(
    data: str = "digits",
    clusters: str = "4,16,64",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.02,
    epochs: PositiveInt = 15,
    cluster_epochs: PositiveInt = 4,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 1e-3,
    cluster_lr: PositiveFloat = 1e-4,
    seed: NonNegativeInt = 0,
) -> None:
    """Clusters the weights of one net to several numbers of values and compares them.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), a folder of images, or the path of
            an .npz file.
        clusters: Values in a kernel, 3 or more, with commas between.
        model_uri: A logged Keras model to cluster, as models:/digits@champion; empty: train one.
        max_accuracy_drop: How much validation accuracy the variant chosen may lose.
        epochs: Epochs of the baseline.
        cluster_epochs: Epochs of each clustering.
        batch_size: Examples per step.
        lr: Learning rate of Adam for the baseline.
        cluster_lr: Learning rate of Adam while clustering.
        seed: Seed of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    wanted = counts(clusters)
    images = load(data, seed=seed)

    record = {"dataset": images.dataset, "seed": seed, "variants": 1 + len(wanted)}
    with mka.technique("cluster", params, **record) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(
            technique,
            trade,
            images,
            model_uri=model_uri,
            lr=lr,
            epochs=epochs,
            batch_size=batch_size,
        )
        tuning = {"lr": cluster_lr, "epochs": cluster_epochs, "batch_size": batch_size}
        excess = []
        for name, count in wanted.items():
            with technique.variant(name, params={"clusters": count}):
                clustered = mka.compression.cluster(
                    model, images.train, clusters=count, **training(model, images, **tuning)
                )
                trade.add(clustered)
            excess += [row.distinct - count for row in clustered.layers if row.clusters]

        conclude(
            technique,
            trade.choose(margin=max_accuracy_drop),
            mka.Claim(
                "excess_values",
                "most values in a kernel beyond the number asked for",
                max(excess),
                at_most=0,
            ),
            max_accuracy_drop=max_accuracy_drop,
            bytes_left=lambda _: 0.5,
        )


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
