"""The whole recipe: a net is trained, pruned, clustered, quantized and put in a small file.

Each step removes another kind of redundancy, and the next one keeps what it has won: zeros stay
zeros while the other weights move to a few values, and both stay while the net learns to live with
eight bits (PCQAT). What is left compresses well:

    train → prune → cluster → quantization-aware training → LiteRT

Han, Mao, Dally: Deep Compression, 2016, arXiv:1510.00149, whose Huffman coding is gzip here.

One nested run for each step, with the file that int8 makes of it, so that the picture on the parent
shows what each of them is worth; the smallest file within `max_accuracy_drop` is chosen. What to
expect: on digits int8 of the pruned net takes an eighth of the float file after gzip, the whole
recipe a tenth. About two minutes of computing on two cores.

    mlflow run . -e compress --env-manager local -P max_accuracy_drop=0.01
    mlflow run . -e compress --env-manager local -P model_uri=models:/digits@champion
"""

from functools import partial
from typing import Annotated, Any

import keras
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.compressing import (
    Variant,
    accuracy_against_size,
    baseline,
    loss_of,
    smallest_within,
    validation_accuracy,
)
from projects.data import load
from projects.litert_files import file_variant


def main(
    data: str = "digits",
    model_uri: str = "",
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.8,
    clusters: Annotated[int, Field(ge=3)] = 16,
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01,
    epochs: PositiveInt = 15,
    prune_epochs: PositiveInt = 10,
    tune_epochs: PositiveInt = 5,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    tune_lr: Annotated[float, Field(gt=0)] = 1e-4,
    samples: PositiveInt = 200,
    seed: NonNegativeInt = 0,
) -> None:
    """Compresses one net step by step and chooses the smallest file that is good enough.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        model_uri: A logged Keras model to compress, as models:/digits@champion; empty: train one.
        sparsity: Share of each kernel that is pruned to zero.
        clusters: Values that the weights of a kernel share.
        max_accuracy_drop: Of validation accuracy, that the file chosen may lose.
        epochs: Epochs of the baseline.
        prune_epochs: Epochs of pruning.
        tune_epochs: Epochs of clustering, and of quantization-aware training.
        batch_size: Examples per step.
        lr: Learning rate of Adam for the baseline and for pruning.
        tune_lr: Learning rate of Adam in the other two.
        samples: Training images that set the ranges of activations.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "compress"}
    images = load(data, seed=seed)
    dataset = mka.Dataset(images.name, images.digest)
    calibration = images.x_train[:samples]

    def training(rate: float, rounds: int) -> dict[str, Any]:
        return {
            "loss": loss_of(start.model),
            "optimizer": keras.optimizers.Adam(rate),
            "metrics": ["accuracy"],
            "epochs": rounds,
            "batch_size": batch_size,
            "validation_data": (images.x_validation, images.y_validation),
            "callbacks": [mka.MlflowLogger()],
            "verbose": 0,
        }

    def step(name: str, source: Variant, shrink: Any, rate: float, rounds: int) -> Variant:
        with run.child(name, tags=technique) as child:
            keras.utils.set_random_seed(seed)
            train = images.x_train, images.y_train
            model = shrink(source.model, train, **training(rate, rounds)).model
            finished = mka.log_finished_model(
                child,
                model,
                images.x_test,
                images.y_test,
                name=name,
                dataset=dataset,
                reference=start.model,
                parent_model_id=source.finished.info.model_id,
            )
        return Variant(child, model, finished, validation_accuracy(model, images))

    with mka.track("compress", params=params, tags=technique) as run:
        run.log_dataset(dataset, context="training")

        print("[1/4] baseline", flush=True)
        start = baseline(
            run,
            images,
            dataset,
            technique="compress",
            model_uri=model_uri,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
        )
        print("[2/4] pruned", flush=True)
        prune = partial(mka.compression.prune, sparsity=sparsity)
        pruned = step("pruned", start, prune, lr, prune_epochs)

        print("[3/4] clustered", flush=True)
        cluster = partial(mka.compression.cluster, clusters=clusters)
        clustered = step("clustered", pruned, cluster, tune_lr, tune_epochs)

        print("[4/4] quantized", flush=True)

        def int8(source: Variant) -> Any:
            return mka.compression.quantize(source.model, mka.compression.int8, calibration)

        def pcqat() -> Any:
            keras.utils.set_random_seed(seed)
            return mka.compression.quantize_aware(
                clustered.model,
                (images.x_train, images.y_train),
                preserve_sparsity=True,
                preserve_clusters=True,
                **training(tune_lr, tune_epochs),
            )

        made = {
            "float32": (start, lambda: mka.compression.convert(start.model, calibration)),
            "int8": (start, partial(int8, start)),
            "pruned_int8": (pruned, partial(int8, pruned)),
            "clustered_int8": (clustered, partial(int8, clustered)),
            "pcqat": (clustered, pcqat),
        }
        files = {
            name: file_variant(
                run,
                name,
                make,
                technique="compress",
                images=images,
                dataset=dataset,
                source=source,
                reference=start,
            )
            for name, (source, make) in made.items()
        }

        chosen = smallest_within({"baseline": start, **files}, max_accuracy_drop)
        variants = {"baseline": start, "pruned": pruned, "clustered": clustered, **files}
        mka.log_comparison(
            run,
            {name: each.run for name, each in variants.items()},
            candidates=[chosen],
            curves=("train/loss", "val/accuracy"),
        )
        run.log_figure(accuracy_against_size(files), "accuracy_against_size.png")
        final = {name: each.finished.final for name, each in variants.items()}
        whole = final["float32"]["gzip_bytes"]
        claims = mka.log_claims(
            run,
            mka.Claim(
                "pruned_int8_gzip_share",
                "gzip bytes of the pruned net in int8, in parts of the float file's",
                final["pruned_int8"]["gzip_bytes"] / whole,
                at_most=0.13,
            ),
            mka.Claim(
                "pcqat_gzip_share",
                "gzip bytes of the whole recipe, in parts of the float file's",
                final["pcqat"]["gzip_bytes"] / whole,
                at_most=0.10,
            ),
            mka.Claim(
                "pcqat_accuracy_drop",
                "test accuracy that the whole recipe loses",
                final["float32"]["accuracy"] - final["pcqat"]["accuracy"],
                at_most=0.02,
            ),
        )
        result = (
            f"{chosen} is the smallest that loses at most {max_accuracy_drop:.1%} on validation: "
            f"{final[chosen]['gzip_bytes'] / 1000:.0f} kB after gzip instead of "
            f"{whole / 1000:.0f}, test accuracy {final[chosen]['accuracy']:.1%} instead of "
            f"{final['baseline']['accuracy']:.1%}."
        )
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)
