"""Clustering: the weights of each kernel of a trained net share a few values.

The weights of a kernel are grouped around k centroids, and every weight is replaced by its own
centroid. Trained on, a centroid gets the sum of its weights' gradients. A kernel is then a table of
k numbers and, for each weight, an index of log2(k) bits, which a compressor finds in the file.

Han, Mao, Dally: Deep Compression, 2016, arXiv:1510.00149, section 3.

One nested run for each number of clusters, and the baseline: `layers.json` is the table of layers,
`accuracy_against_size.png` on the parent the result. What to expect: 16 values cost next to no
accuracy and leave a quarter of the compressed file; 4 need the training that follows, as
`final/accuracy_at_once` shows, which is without it. Before it is compressed the file is as large as
ever, and the model gets no faster. About two minutes of computing on two cores.

    mlflow run . -e cluster --env-manager local -P clusters=4,8
    mlflow run . -e cluster --env-manager local -P model_uri=models:/digits@champion
"""

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from sklearn.cluster import KMeans

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.compressing import (
    accuracy_drop,
    accuracy_with,
    baseline,
    gzip_share,
    outcome,
    training,
)
from projects.data import load
from projects.parameters import BatchSize, Images, Seed


def shared(kernel: np.ndarray, count: int) -> np.ndarray:
    """The kernel with each weight replaced by its centroid, which k-means finds."""
    weights = kernel.reshape(-1, 1)
    found = KMeans(min(count, len(weights)), n_init=1, random_state=0).fit(weights)
    return found.cluster_centers_[found.labels_].reshape(kernel.shape)


def main(
    data: Images = "digits",
    clusters: str = "4,16,64",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.02,
    epochs: PositiveInt = 15,
    cluster_epochs: PositiveInt = 4,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 1e-3,
    cluster_lr: PositiveFloat = 1e-4,
    seed: Seed = 0,
) -> None:
    """Clusters the weights of one net to several numbers of values and compares them.

    Args:
        clusters: Values in a kernel, 3 or more, with commas between.
        model_uri: A logged Keras model to cluster, as models:/digits@champion; empty: train one.
        max_accuracy_drop: How much validation accuracy the variant chosen may lose.
        epochs: Epochs of the baseline.
        cluster_epochs: Epochs of each clustering.
        lr: Learning rate of Adam for the baseline.
        cluster_lr: Learning rate of Adam while clustering.
    """
    params = dict(locals())
    wanted = counts(clusters)
    images = load(data, seed=seed)
    knobs = {"lr": lr, "epochs": epochs, "batch_size": batch_size}

    with mka.technique("cluster", params, dataset=images, variants=1 + len(wanted)) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(technique, trade, images, model_uri=model_uri, **knobs)
        knobs |= {"lr": cluster_lr, "epochs": cluster_epochs}
        settings, excess = training(model, images, **knobs), []
        for name, count in wanted.items():
            with technique.variant(name, params={"clusters": count}) as run:
                clustered = mka.compression.cluster(model, images.train, clusters=count, **settings)
                trade.add(clustered)
                at_once = accuracy_with(model, images, lambda w, k=count: shared(w, k))
                run.log_metrics({"final/accuracy_at_once": at_once}, step=0)
            excess += [row.distinct - count for row in clustered.layers if row.clusters]

        chosen = trade.choose(margin=max_accuracy_drop)
        text = "most values in a kernel beyond the number asked for"
        technique.conclude(
            outcome(technique, chosen, max_accuracy_drop),
            mka.Claim("excess_values", text, max(excess), at_most=0),
            accuracy_drop(technique, chosen, max_accuracy_drop),
            gzip_share(technique, chosen, at_most=1.0 if chosen == "baseline" else 0.5),
        )


def counts(clusters: str) -> dict[str, int]:
    """The numbers in "8,16", by the name of the run: `8-values`."""
    try:
        found = [int(text) for text in clusters.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 3:
        raise mka.UserError(
            f"clusters: got {clusters!r}, expected whole numbers of 3 or more with commas between"
        )
    return {f"{count}-values": count for count in found}


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
