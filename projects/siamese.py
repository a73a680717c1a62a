"""Siamese nets: an embedding in which images of one class lie close together and others apart.

The same net embeds both images of a pair, and the loss looks at their distance only. Every batch
holds all pairs of its images, and all triplets:

    contrastive   d² for a pair of one class, max(0, margin - d)² for one of two classes
    triplet       max(0, margin + d(farthest of the same class) - d(nearest of another))

Hadsell, Chopra, LeCun: Dimensionality reduction by learning an invariant mapping, 2006; Schroff et
al. 2015, arXiv:1503.03832; the hardest triplet of each image: Hermans et al. 2017,
arXiv:1703.07737.

Three nested runs with the same keys: the best linear projection that knows the labels (LDA),
contrastive, triplet. With two dimensions, the default, `embeddings.png` shows the embedding itself.
A k-NN classifier then reads test images from their two numbers. What to expect: islands where LDA
mixes the classes. Half a minute of computing on two cores.

    mlflow run . -e siamese --env-manager local -P dimensions=8
"""

from typing import Annotated, Any

import keras
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeInt, PositiveInt
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load

ops = keras.ops
MARGIN = 1.0


def embedding_net(data: Data, dimensions: int) -> keras.Model:
    """A convolutional net that gives a point."""
    layers = keras.layers
    body = [
        layers.Conv2D(16, 3, activation="relu"),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
    ]
    return keras.Sequential([keras.Input(data.input_shape), *body, layers.Dense(dimensions)])


def pairs(y: Any, points: Any) -> tuple[Any, Any]:
    """Of all pairs of a batch: whether they are of one class, and their distance."""
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


def lda_net(data: Data, dimensions: int) -> keras.Model:
    """The linear projection that separates the classes best, as a net."""
    flat = data.x_train.reshape(len(data.x_train), -1)
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=dimensions)
    lda.fit(flat, data.y_train)
    dense = keras.layers.Dense(dimensions, use_bias=False)
    net = keras.Sequential([keras.Input(data.input_shape), keras.layers.Flatten(), dense])
    dense.set_weights([lda.scalings_[:, :dimensions]])
    return net


def embed(net: keras.Model, x: Any) -> Any:
    """The points [n, dimensions] of images."""
    return net.predict(x, batch_size=512, verbose=0)


def knn_accuracy(net: keras.Model, data: Data, x: Any, y: Any) -> float:
    """How often the 5 nearest training images tell the class."""
    classifier = KNeighborsClassifier(5).fit(embed(net, data.x_train), data.y_train)
    return float(classifier.score(embed(net, x), y))


def scatter(nets: dict[str, keras.Model], x: Any, y: Any) -> Figure:
    """The points of each net, coloured by class; of more than two dimensions the two widest."""
    figure = Figure(figsize=(5 * len(nets), 4.5), layout="constrained")
    for panel, (name, net) in zip(figure.subplots(1, len(nets)), nets.items(), strict=True):
        points = embed(net, x)
        points = points if points.shape[1] == 2 else PCA(2).fit_transform(points)
        drawn = panel.scatter(*points.T, c=y, cmap="tab10", s=8)
        panel.set(title=name, xticks=[], yticks=[])
    figure.colorbar(drawn, label="class")
    return figure


def main(
    data: str = "digits",
    epochs: PositiveInt = 30,
    batch_size: Annotated[int, Field(ge=2)] = 64,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    dimensions: Annotated[int, Field(ge=2, le=9)] = 2,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains an embedding with the contrastive and with the triplet loss, beside LDA.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each of the two trainings.
        batch_size: Images per step, all of whose pairs are looked at; 2 or more.
        lr: Learning rate of Adam.
        dimensions: Of the embedding, from 2 to 9; LDA has one less than there are classes at most.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "siamese"}
    images = load(data, seed=seed)
    if dimensions >= images.classes:
        raise mka.UserError(
            f"dimensions: got {dimensions}, but {images.name} has {images.classes} classes, which "
            f"LDA projects to {images.classes - 1} at most; choose fewer"
        )
    validation, test = images.validation, images.test

    def train(net: keras.Model, loss: Any) -> None:
        net.compile(keras.optimizers.Adam(lr), loss=loss)

        judge = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda _, logs: logs.update(
                val_accuracy=knn_accuracy(net, images, *validation)
            )
        )
        net.fit(
            *images.train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=validation,
            callbacks=[judge, mka.MlflowLogger()],  # in this order: one tells the other
            verbose=0,
        )

    with mka.track("siamese", params=params, tags=technique) as run:
        run.log_dataset(images.dataset, context="training")
        runs, nets, accuracy = {}, {}, {}
        losses = {"lda": None, "contrastive": contrastive, "triplet": triplet}
        for number, (variant, loss) in enumerate(losses.items(), start=1):
            print(f"[{number}/{len(losses)}] {variant}", flush=True)
            with run.child(variant, tags=technique) as child:
                keras.utils.set_random_seed(seed)
                if loss is None:
                    net = lda_net(images, dimensions)
                else:
                    net = embedding_net(images, dimensions)
                    train(net, loss)
                accuracy[variant] = knn_accuracy(net, images, *test)
                scores = {"accuracy": accuracy[variant]}
                mka.log_finished_model(
                    child, net, images.x_test, name=variant, scores=scores, dataset=images.dataset
                )
            runs[variant], nets[variant] = child, net

        winner = mka.log_comparison(run, runs)
        run.log_figure(scatter(nets, *test), "embeddings.png")
        claims = mka.log_claims(
            run,
            *(
                mka.Claim(
                    f"{variant}_gain",
                    f"k-NN accuracy that the {variant} loss adds to LDA in {dimensions} dimensions",
                    accuracy[variant] - accuracy["lda"],
                    at_least=0.15,
                )
                for variant in ("contrastive", "triplet")
            ),
        )
        result = (
            f"From {dimensions} numbers per image, k-NN reads {accuracy['contrastive']:.1%} "
            f"(contrastive) and {accuracy['triplet']:.1%} (triplet) of the test images, from those "
            f"of LDA {accuracy['lda']:.1%}."
        )
        run.describe(f"{result}\n\n{claims}\n\nBest on validation: {winner}.")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)
