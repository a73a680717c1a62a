r"""The whole recipe: a net is trained, pruned, clustered, quantized and converted to a small file.

Each step removes another kind of redundancy, and the next one preserves it: zeros stay zeros while
the other weights are clustered, and both are kept in quantization-aware training (PCQAT). The
result compresses well:

    train → prune → cluster → quantization-aware training → LiteRT

Han, Mao, Dally: Deep Compression, 2016, arXiv:1510.00149, whose Huffman coding is gzip here.

One nested run for each step, with its int8 file, so that the picture on the parent shows the gain
of each; the smallest file within `max_accuracy_drop` is chosen, and `final/times_smaller` is the
ratio of the float file's size to its own. What to expect: on digits int8 of the pruned net takes an
eighth of the float file after gzip, the whole recipe a tenth. About two minutes of computing on two
cores.

    mlflow run . -e compress --env-manager local -P max_accuracy_drop=0.01
    mlflow run . -e compress --env-manager local -P model_uri=models:/digits@champion

The paper's LeNet-300-100 (its table 1: 40 times smaller and no less accurate) on MNIST, or another
.npz file of its kind; with 10,000 digits of MNIST, 1,500 of them for the test, it came to 46 times,
at 95.8 % instead of 95.7 %:

    mlflow run . -e compress --env-manager local -P data=mnist.npz -P net=lenet-300-100 \
        -P sparsity=0.95 -P clusters=16 -P epochs=20 -P prune_epochs=20
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.compressing import NETS, baseline, outcome, training
from projects.data import load
from projects.parameters import BatchSize, Images, Seed


def main(
    data: Images = "digits",
    net: Literal["convolutions", "lenet-300-100"] = "convolutions",
    model_uri: str = "",
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.8,
    clusters: Annotated[int, Field(ge=3)] = 16,
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01,
    epochs: PositiveInt = 15,
    prune_epochs: PositiveInt = 10,
    tune_epochs: PositiveInt = 5,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 1e-3,
    tune_lr: PositiveFloat = 1e-4,
    samples: PositiveInt = 200,
    seed: Seed = 0,
) -> None:
    """Compresses one net step by step and chooses the smallest file that is good enough.

    Args:
        net: convolutions or lenet-300-100; what is trained where no model is given.
        model_uri: A logged Keras model to compress, as models:/digits@champion; empty: train one.
        sparsity: Share of each kernel that is pruned to zero.
        clusters: Values that the weights of a kernel share.
        max_accuracy_drop: How much validation accuracy the file chosen may lose.
        epochs: Epochs of the baseline.
        prune_epochs: Epochs of pruning.
        tune_epochs: Epochs of clustering, and of quantization-aware training.
        lr: Learning rate of Adam for the baseline and for pruning.
        tune_lr: Learning rate of Adam in the other two.
        samples: Training images that set the ranges of activations.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    calibration = images.x_train[:samples]

    with mka.technique("compress", params, dataset=images, variants=8) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(
            technique,
            trade,
            images,
            model_uri=model_uri,
            make=NETS[net],
            lr=lr,
            epochs=epochs,
            batch_size=batch_size,
        )
        pruning = training(model, images, lr=lr, epochs=prune_epochs, batch_size=batch_size)
        with technique.variant("pruned", params={"sparsity": sparsity}):
            pruned = mka.compression.prune(model, images.train, sparsity=sparsity, **pruning)
            trade.add(pruned)

        tuning = {"lr": tune_lr, "epochs": tune_epochs, "batch_size": batch_size}
        with technique.variant("clustered", params={"clusters": clusters}):
            clustered = mka.compression.cluster(
                pruned.model, images.train, clusters=clusters, **training(model, images, **tuning)
            )
            trade.add(clustered, parent="pruned")

        with technique.variant("float32"):
            trade.add(mka.compression.convert(model, calibration))
        int8 = {"baseline": model, "pruned": pruned.model, "clustered": clustered.model}
        for parent, source in int8.items():
            with technique.variant("int8" if source is model else f"{parent}_int8"):
                file = mka.compression.quantize(source, mka.compression.int8, calibration)
                trade.add(file, parent=parent)
        with technique.variant("pcqat"):
            file = mka.compression.quantize_aware(
                clustered.model,
                images.train,
                preserve_sparsity=True,
                preserve_clusters=True,
                **training(model, images, **tuning),
            )
            trade.add(file, parent="clustered")

        files = ("float32", "int8", "pruned_int8", "clustered_int8", "pcqat")
        chosen = trade.choose(margin=max_accuracy_drop, candidates=files)
        sizes, right = technique.final("gzip_bytes"), technique.final("accuracy")
        smaller = technique.final("size_bytes")["float32"] / sizes[chosen]
        technique.run.log_metrics({"final/times_smaller": smaller}, step=0)
        # The zeros leave that share of a compressed file; int8 has a quarter of its bits, the
        # clusters half of those.
        left = 1 - 0.75 * sparsity
        technique.conclude(
            f"{outcome(technique, chosen, max_accuracy_drop, float32='float32')} That is "
            f"{smaller:.0f} times smaller than the float file.",
            mka.Claim(
                "pruned_int8_gzip_share",
                "gzip bytes of the pruned net in int8, relative to the float file's",
                sizes["pruned_int8"] / sizes["float32"],
                at_most=0.325 * left,
            ),
            mka.Claim(
                "pcqat_gzip_share",
                "gzip bytes of the whole recipe, relative to the float file's",
                sizes["pcqat"] / sizes["float32"],
                at_most=0.25 * left,
            ),
            mka.Claim(
                "pcqat_accuracy_drop",
                "test accuracy that the whole recipe loses",
                right["float32"] - right["pcqat"],
                at_most=0.02,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
