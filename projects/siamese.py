"""Siamese nets: an embedding in which images of one class are close, and others are far apart.

The same net embeds both images of a pair, and the loss depends only on their distance. It is
computed over all pairs of images in a batch, or over all triplets:

    contrastive   d² for a pair of one class, max(0, margin - d)² for one of two classes
    triplet       max(0, margin + d(farthest of the same class) - d(nearest of another))

Hadsell, Chopra, LeCun: Dimensionality reduction by learning an invariant mapping, 2006; Schroff et
al. 2015, arXiv:1503.03832; of hardest triplets: Hermans et al. 2017, arXiv:1703.07737.

Three nested runs with the same keys: the best linear projection that knows the labels (LDA),
contrastive, triplet. `embeddings.png` shows the points, and k-NN classifies test images by their
two coordinates. What to expect: separate clusters where LDA mixes the classes. Half a minute of
computing on two cores.

    mlflow run . -e siamese --env-manager local -P dimensions=8
"""

from typing import Annotated, Any

import keras
from pydantic import Field, PositiveFloat, PositiveInt
from sklearn.neighbors import KNeighborsClassifier

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.figures import embeddings_figure
from mlflow_keras_adv.lessons.linear import lda_net
from projects.data import Data, load
from projects.parameters import Images, Seed

ops = keras.ops
MARGIN = 1.0


def embedding_net(data: Data, dimensions: int) -> keras.Model:
    """A convolutional net that gives a point."""
    layers = keras.layers
    body = [layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 3, activation="relu")]
    head = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(dimensions)]
    return keras.Sequential([keras.Input(data.input_shape), *body, *head])


def pairs(y: Any, points: Any) -> tuple[Any, Any]:
    """All pairs of a batch: whether they are of one class, and their distance."""
    y = ops.reshape(y, (-1,))
    differences = points[:, None] - points[None]
    # The root of zero has no gradient, and every point is in a pair with itself.
    distances = ops.sqrt(ops.sum(ops.square(differences), axis=-1) + 1e-12)
    return ops.cast(y[:, None] == y[None], points.dtype), distances


def contrastive(y: Any, points: Any) -> Any:
    """Mean over the pairs of a batch: labels [n], points [n, dimensions] -> one number."""
    same, distances = pairs(y, points)
    close, apart = ops.square(distances), ops.square(ops.relu(MARGIN - distances))
    return ops.sum(same * close) / ops.sum(same) + ops.sum((1 - same) * apart) / ops.sum(1 - same)


def triplet(y: Any, points: Any) -> Any:
    """Mean over the images of a batch, each with its hardest partners."""
    same, distances = pairs(y, points)
    farthest = ops.max(same * distances, axis=1)
    nearest = ops.min(distances + 1e6 * same, axis=1)
    return ops.mean(ops.relu(MARGIN + farthest - nearest))


def knn_accuracy(net: keras.Model, data: Data, x: Any, y: Any) -> float:
    """Accuracy of a classifier by the 5 nearest training images."""
    points, known = (net.predict(each, batch_size=512, verbose=0) for each in (x, data.x_train))
    return float(KNeighborsClassifier(5).fit(known, data.y_train).score(points, y))


def main(
    data: Images = "digits",
    epochs: PositiveInt = 30,
    batch_size: Annotated[int, Field(ge=2)] = 64,
    lr: PositiveFloat = 1e-3,
    dimensions: Annotated[int, Field(ge=2, le=9)] = 2,
    seed: Seed = 0,
) -> None:
    """Trains an embedding with the contrastive and with the triplet loss, beside LDA.

    Args:
        epochs: Epochs of each of the two trainings.
        batch_size: Images per step, all of whose pairs are looked at; 2 or more.
        lr: Learning rate of Adam.
        dimensions: Dimensions of the embedding, from 2 to 9; fewer than there are classes.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    if dimensions >= images.classes:
        raise mka.UserError(
            f"dimensions: got {dimensions}, but LDA projects the {images.classes} classes of "
            f"{images.name} to {images.classes - 1} at most; choose fewer"
        )

    def train(net: keras.Model, loss: Any) -> None:
        def judge(_: int, logs: dict[str, float]) -> None:
            logs["val_accuracy"] = knn_accuracy(net, images, *images.validation)

        net.compile(keras.optimizers.Adam(lr), loss)
        net.fit(
            *images.train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=images.validation,
            # In this order: what the first puts in the logs, the second finds there.
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=judge), mka.MlflowLogger()],
            verbose=0,
        )

    losses = {"lda": None, "contrastive": contrastive, "triplet": triplet}
    points = {}
    with mka.technique("siamese", params, dataset=images, variants=len(losses)) as technique:
        for name, loss in losses.items():
            with technique.variant(name):
                net = (
                    embedding_net(images, dimensions)
                    if loss
                    else lda_net(*images.train, dimensions)
                )
                if loss:
                    train(net, loss)
                scores = {"accuracy": knn_accuracy(net, images, *images.test)}
                technique.finish(net, images.x_test, scores=scores)
            points[name] = net.predict(images.x_test, batch_size=512, verbose=0)

        technique.compare()
        technique.run.log_figure(embeddings_figure(points, images.y_test), "embeddings.png")
        lda, pairwise, hardest = technique.final("accuracy").values()
        gains = pairwise - lda, hardest - lda
        technique.conclude(
            f"From {dimensions} numbers per image, k-NN reads {pairwise:.1%} (contrastive) and "
            f"{hardest:.1%} (triplet) of the test images, from those of LDA {lda:.1%}.",
            mka.Claim("triplet", "k-NN accuracy of triplet above LDA's", gains[1], at_least=0.15),
            mka.Claim("contrastive", "that of contrastive above LDA's", gains[0], at_least=0.15),
        )


if __name__ == "__main__":
    entry_point.run(main)
