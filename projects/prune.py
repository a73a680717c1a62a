"""Pruning: the smallest weights of a trained net are set to zero while it is fine-tuned.

Most weights of a net are near zero and matter little. They are removed step by step, fast at first,
then slower, until a share s of each kernel is zero; the others learn to make up for it:

    sparsity(t) = s + (s_0 - s) * (1 - t)³,  t from 0 to 1

Zhu, Gupta: To prune, or not to prune, 2017, arXiv:1710.01878. A pattern such as 2:4 (two zeros in
every four inputs) is what some hardware can make use of: Mishra et al. 2021, arXiv:2104.08378.

One nested run for each sparsity, and the baseline: `batch/sparsity` is the curve, `layers.json` the
table of layers, `accuracy_against_size.png` on the parent the result. What to expect: set to zero
at once, the same share of weights leaves little accuracy (`final/accuracy_at_once`). The zeros take
as many bytes as before, until the file is compressed; the model gets no faster. On digits (means of
three seeds) 80 % costs no accuracy and leaves a third of the compressed file, 90 % costs a point
and leaves a fifth. About two minutes of computing on two cores.

    mlflow run . -e prune --env-manager local -P sparsities=0.8,0.9
    mlflow run . -e prune --env-manager local -P model_uri=models:/digits@champion
"""

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

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

Target = float | tuple[int, int]


def without_smallest(kernel: np.ndarray, share: float) -> np.ndarray:
    """The kernel with this share of it, the smallest absolute values, set to zero."""
    threshold = np.quantile(np.abs(kernel), share)
    return np.where(np.abs(kernel) > threshold, kernel, 0)


def cubic(t: float) -> float:
    """How far the sparsity has come at t, which grows from 0 to 1: fast at first, then slower."""
    return 1 - (1 - t) ** 3


def main(
    data: Images = "digits",
    sparsities: str = "0.5,0.8,0.9,2:4",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.02,
    epochs: PositiveInt = 15,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 1e-3,
    seed: Seed = 0,
) -> None:
    """Prunes one net to several sparsities and compares them.

    Args:
        sparsities: Shares of zeros, such as 0.8, or patterns, such as 2:4, separated by commas.
        model_uri: A logged Keras model to prune, as models:/digits@champion; empty: train one.
        max_accuracy_drop: How much validation accuracy the variant chosen may lose.
        epochs: Epochs of the baseline and of each pruning.
        lr: Learning rate of Adam.
    """
    params = dict(locals())
    wanted = targets(sparsities)
    images = load(data, seed=seed)
    knobs = {"lr": lr, "epochs": epochs, "batch_size": batch_size}

    with mka.technique("prune", params, dataset=images, variants=1 + len(wanted)) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(technique, trade, images, model_uri=model_uri, **knobs)
        settings, differences = training(model, images, **knobs), []
        for name, target in wanted.items():
            with technique.variant(name, params={"sparsity": str(target)}) as run:
                pruned = mka.compression.prune(
                    model, images.train, sparsity=target, schedule=cubic, **settings
                )
                trade.add(pruned)
                share = share_of(target)
                at_once = accuracy_with(model, images, lambda w, s=share: without_smallest(w, s))
                run.log_metrics({"final/accuracy_at_once": at_once}, step=0)
            rows = [row for row in pruned.layers if row.target is not None]
            differences += [abs(row.sparsity - row.target) for row in rows]

        curves = ("train/loss", "val/accuracy", "batch/sparsity")
        chosen = trade.choose(margin=max_accuracy_drop, curves=curves)
        zeros = technique.finished[chosen].final["sparsity"]
        text = "largest difference between the sparsity asked of a layer and the one it has"
        technique.conclude(
            outcome(technique, chosen, max_accuracy_drop),
            mka.Claim("sparsity_difference", text, max(differences), at_most=0.01),
            accuracy_drop(technique, chosen, max_accuracy_drop),
            gzip_share(technique, chosen, at_most=1 - 0.75 * zeros),  # a zero leaves a quarter
        )


def share_of(target: Target) -> float:
    """The share of zeros: 0.8 of 0.8, a half of 2:4."""
    return target[0] / max(target[1], 1) if isinstance(target, tuple) else target


def targets(sparsities: str) -> dict[str, Target]:
    """The targets in "0.8,2:4", by the name of the run: `80-percent`, `2-of-4`."""
    found: dict[str, Target] = {}
    for text in sparsities.split(","):
        zeros, _, group = text.strip().partition(":")
        try:
            if group:
                found[f"{int(zeros)}-of-{int(group)}"] = int(zeros), int(group)
            else:
                found[f"{100 * float(zeros):g}-percent".replace(".", "_")] = float(zeros)
        except ValueError:
            raise mka.UserError(
                f"sparsities: {text!r} in {sparsities!r} is neither a share, such as 0.8, nor "
                "a pattern, such as 2:4; give some of both with commas between"
            ) from None
    for share in map(share_of, found.values()):
        if not 0 < share < 1:
            raise mka.UserError(
                f"sparsities: {sparsities!r} asks for {share:g} of zeros; expected a share above 0 "
                "and below 1"
            )
    return found


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
