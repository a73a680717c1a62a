"""Quantization: the numbers of a trained net are stored, and mostly computed with, in fewer bits.

A weight w is kept as an integer q of 8 or 4 bits, with a scale s and a zero point z for each
channel of a kernel:

    w ≈ s * (q - z)

Weights alone make the file smaller. Where activations are integers too, whose ranges some hundred
images show, it also gets faster, and runs where there are no floats. In quantization-aware training
(`qat`) the net is trained on with the rounding in place, and learns to live with it.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, 2018, arXiv:1712.05877.

One nested run for each scheme, for the float file (`float32`) and for the Keras model (`baseline`).
Each file is a LiteRT model on record, which needs no TensorFlow to run; `weights.json` is the table
of its weights, `accuracy_against_size.png` on the parent the result. What to expect: int8 takes
less than a third of the bytes and costs less than a point of accuracy; int4 half of that, and it is
slower. About a minute of computing on two cores.

    mlflow run . -e quantize --env-manager local -P schemes=int8,int8_io,qat
    mlflow run . -e quantize --env-manager local -P model_uri=models:/digits@champion
"""

from functools import partial
from typing import Annotated

import keras
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from mlflow_keras_adv.compression.conversion import Artifact, convert
from mlflow_keras_adv.compression.quantization import SCHEMES, quantize
from mlflow_keras_adv.compression.quantization_aware import quantize_aware
from projects.compressing import accuracy_against_size, baseline, loss_of, smallest_within
from projects.data import load
from projects.litert_files import file_variant

BY_NAME = {scheme.__name__: scheme for scheme in SCHEMES}


def kinds(schemes: str) -> list[str]:
    """What "int8,qat" asks for; all of them for "all"."""
    known = [*BY_NAME, "qat"]
    found = known if schemes == "all" else [text.strip() for text in schemes.split(",")]
    unknown = [name for name in found if name not in known]
    if unknown:
        raise mka.UserError(
            f"schemes: got {unknown[0]!r} in {schemes!r}; give some of {', '.join(known)} with "
            "commas between, or all"
        )
    return list(dict.fromkeys(found))


def main(
    data: str = "digits",
    schemes: str = "all",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01,
    epochs: PositiveInt = 15,
    qat_epochs: PositiveInt = 5,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    qat_lr: Annotated[float, Field(gt=0)] = 1e-4,
    samples: PositiveInt = 200,
    seed: NonNegativeInt = 0,
) -> None:
    """Quantizes one net in several ways and compares the files.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        schemes: float16, int16x8, weight_only_int8, dynamic_int8, int8, int8_io, weight_only_int4,
            dynamic_int4, qat with commas between, or all.
        model_uri: A logged Keras model to quantize, as models:/digits@champion; empty: train one.
        max_accuracy_drop: Of validation accuracy, that the file chosen may lose.
        epochs: Epochs of the baseline.
        qat_epochs: Epochs of quantization-aware training.
        batch_size: Examples per step.
        lr: Learning rate of Adam for the baseline.
        qat_lr: Learning rate of Adam in quantization-aware training.
        samples: Training images that set the ranges of activations.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "quantize"}
    wanted = kinds(schemes)
    images = load(data, seed=seed)
    dataset = mka.Dataset(images.name, images.digest)

    with mka.track("quantize", params=params, tags=technique) as run:
        run.log_dataset(dataset, context="training")
        print(f"[1/{len(wanted) + 2}] baseline", flush=True)
        start = baseline(
            run,
            images,
            dataset,
            technique="quantize",
            model_uri=model_uri,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
        )
        floats = convert(start.model, images.x_train[:samples])

        def made(name: str) -> Artifact:
            if name == "float32":
                return floats
            if name != "qat":
                return quantize(floats, BY_NAME[name])
            keras.utils.set_random_seed(seed)
            return quantize_aware(
                start.model,
                (images.x_train, images.y_train),
                loss=loss_of(start.model),
                optimizer=keras.optimizers.Adam(qat_lr),
                metrics=["accuracy"],
                epochs=qat_epochs,
                batch_size=batch_size,
                validation_data=(images.x_validation, images.y_validation),
                callbacks=[mka.MlflowLogger()],
                verbose=0,
            )

        variants = {"baseline": start}
        for number, name in enumerate(["float32", *wanted], 2):
            print(f"[{number}/{len(wanted) + 2}] {name}", flush=True)
            variants[name] = file_variant(
                run,
                name,
                partial(made, name),
                technique="quantize",
                images=images,
                dataset=dataset,
                source=start,
                reference=start,
            )

        chosen = smallest_within(variants, max_accuracy_drop)
        mka.log_comparison(
            run, {name: each.run for name, each in variants.items()}, candidates=[chosen]
        )
        run.log_figure(accuracy_against_size(variants), "accuracy_against_size.png")
        final = {name: each.finished.final for name, each in variants.items()}
        checked = [
            mka.Claim(
                "float32_agreement",
                "share of test images on which the float file chooses what Keras does",
                final["float32"]["agreement"],
                at_least=1.0,
            )
        ]
        for name in ("int8", "int8_io", "qat"):
            if name in final:
                share = final[name]["size_bytes"] / final["float32"]["size_bytes"]
                drop = final["float32"]["accuracy"] - final[name]["accuracy"]
                in_parts = f"bytes of {name} in parts of the float file's"
                lost = f"test accuracy that {name} loses"
                checked.append(mka.Claim(f"{name}_size_share", in_parts, share, at_most=0.31))
                checked.append(mka.Claim(f"{name}_accuracy_drop", lost, drop, at_most=0.01))
        claims = mka.log_claims(run, *checked)
        first, last = final["baseline"], final[chosen]
        result = (
            f"{chosen} is the smallest that loses at most {max_accuracy_drop:.1%} on validation: "
            f"{last['size_bytes'] / 1000:.0f} kB instead of "
            f"{final['float32']['size_bytes'] / 1000:.0f}, test accuracy {last['accuracy']:.1%} "
            f"instead of {first['accuracy']:.1%}, {last['latency_ms_p50']:.3f} ms an image instead "
            f"of {final['float32']['latency_ms_p50']:.3f} in LiteRT and "
            f"{first['latency_ms_p50']:.3f} in Keras."
        )
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)
