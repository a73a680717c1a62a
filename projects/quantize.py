"""Quantization: a trained net is stored, and mostly computed, with fewer bits per number.

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

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.metrics.footprint import latency_ms
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from projects.compressing import answers_with, baseline, outcome, training
from projects.data import load
from projects.parameters import BatchSize, Images, Seed


def rounded(kernel: np.ndarray, bits: int) -> np.ndarray:
    """The kernel [..., outputs] as `bits` bits keep it: s * q, with z = 0, a scale per output."""
    largest = 2 ** (bits - 1) - 1
    s = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / largest
    q = np.round(kernel / np.maximum(s, np.finfo(np.float32).tiny))
    return s * q


# Functions and recipes of `mka.compression`, beside `quantize_aware`, which is `qat`.
SCHEMES = (
    "float16",
    "int16x8",
    "weight_only_int8",
    "dynamic_int8",
    "int8",
    "int8_io",
    "weight_only_int4",
    "dynamic_int4",
)


def main(
    data: Images = "digits",
    schemes: str = "all",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01,
    epochs: PositiveInt = 15,
    qat_epochs: PositiveInt = 5,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 1e-3,
    qat_lr: PositiveFloat = 1e-4,
    samples: PositiveInt = 200,
    seed: Seed = 0,
) -> None:
    """Quantizes one net in several ways and compares the files.

    Args:
        schemes: float16, int16x8, weight_only_int8, dynamic_int8, int8, int8_io, weight_only_int4,
            dynamic_int4, qat with commas between, or all.
        model_uri: A logged Keras model to quantize, as models:/digits@champion; empty: train one.
        max_accuracy_drop: How much validation accuracy the file chosen may lose.
        epochs: Epochs of the baseline.
        qat_epochs: Epochs of quantization-aware training.
        lr: Learning rate of Adam for the baseline.
        qat_lr: Learning rate of Adam in quantization-aware training.
        samples: Training images that set the ranges of activations.
    """
    params = dict(locals())
    wanted = kinds(schemes)
    images = load(data, seed=seed)
    knobs = {"lr": lr, "epochs": epochs, "batch_size": batch_size}

    with mka.technique("quantize", params, dataset=images, variants=2 + len(wanted)) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(technique, trade, images, model_uri=model_uri, **knobs)
        knobs |= {"lr": qat_lr, "epochs": qat_epochs}
        files = {"float32": mka.compression.convert(model, images.x_train[:samples])}
        for name in ["float32", *wanted]:
            with technique.variant(name, params={"scheme": name}):
                if name == "qat":
                    settings = training(model, images, **knobs)
                    files[name] = mka.compression.quantize_aware(model, images.train, **settings)
                elif name != "float32":
                    scheme = getattr(mka.compression, name)
                    files[name] = mka.compression.quantize(files["float32"], scheme)
                trade.add(files[name])

        chosen = trade.choose(margin=max_accuracy_drop)
        one = images.x_test[:1]
        predicting = np.median(latency_ms(lambda: model.predict(one, verbose=0), repeats=50))
        technique.run.log_metrics({"final/latency_keras_predict_ms_p50": predicting}, step=0)
        final = {name: finished.final for name, finished in technique.finished.items()}
        latency = technique.final("latency_ms_p50")
        text = "share of test images on which the float file chooses what Keras does"
        claims = [mka.Claim("float32_agreement", text, final["float32"]["agreement"], at_least=1.0)]
        for name in ("int8", "int8_io", "qat"):
            if name in final:
                share = final[name]["size_bytes"] / final["float32"]["size_bytes"]
                drop = final["float32"]["accuracy"] - final[name]["accuracy"]
                in_parts = f"bytes of {name} relative to the float file's"
                lost = f"test accuracy that {name} loses"
                claims.append(mka.Claim(f"{name}_size_share", in_parts, share, at_most=0.31))
                claims.append(mka.Claim(f"{name}_accuracy_drop", lost, drop, at_most=0.01))
        if "weight_only_int8" in files and not model_uri:  # the formula is of dense and convolution
            by_hand = answers_with(model, images.x_test, lambda kernel: rounded(kernel, 8))
            in_file = LiteRTModel(files["weight_only_int8"].content).predict(images.x_test)
            off = mka.largest_difference(by_hand, in_file) / np.abs(by_hand).max()
            text = "difference of an answer of weight_only_int8 from the formula, in the net"
            claims.append(mka.Claim("formula", text, off, at_most=1e-3))
        technique.conclude(
            f"{outcome(technique, chosen, max_accuracy_drop, float32='float32')} An image takes "
            f"{latency[chosen]:.3f} ms instead of {latency['float32']:.3f} in LiteRT, "
            f"{latency['baseline']:.2f} in Keras and {predicting:.0f} by its predict().",
            *claims,
        )


def kinds(schemes: str) -> list[str]:
    """The schemes in "int8,qat"; all of them for "all"."""
    known = [*SCHEMES, "qat"]
    found = known if schemes == "all" else [text.strip() for text in schemes.split(",")]
    unknown = [name for name in found if name not in known]
    if unknown:
        raise mka.UserError(
            f"schemes: got {unknown[0]!r} in {schemes!r}; give some of {', '.join(known)} with "
            "commas between, or all"
        )
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
