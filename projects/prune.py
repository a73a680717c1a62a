"""Pruning: the smallest weights of a trained net are set to zero while it is trained on.

Most weights of a net are near zero and do little. They are removed by and by, fast at first, then
slower, until a share s of each kernel is zero; the others learn to make up for it:

    sparsity(t) = s + (s_0 - s) * (1 - t)³,  t from 0 to 1

Zhu, Gupta: To prune, or not to prune, 2017, arXiv:1710.01878. A pattern such as 2:4 (two zeros in
every four inputs) is what some hardware can make use of: Mishra et al. 2021, arXiv:2104.08378.

One nested run for each sparsity, and the baseline: `batch/sparsity` is the curve, `layers.json` the
table of layers, `accuracy_against_size.png` on the parent the result. What to expect: the zeros
take as many bytes as before, until the file is compressed; the model gets no faster. On digits
(means of three seeds) 80 % costs no accuracy and leaves a third of the compressed file, 90 % costs
a point and leaves a fifth. About two minutes of computing on two cores.

    mlflow run . -e prune --env-manager local -P sparsities=0.8,0.9
    mlflow run . -e prune --env-manager local -P model_uri=models:/digits@champion
"""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.compressing import baseline, conclude, training
from projects.data import load

Target = float | tuple[int, int]


def targets(sparsities: str) -> dict[str, Target]:
    """What "0.8,2:4" asks for, by the name of the run: `80-percent`, `2-of-4`."""
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
    for target in found.values():
        share = target[0] / max(target[1], 1) if isinstance(target, tuple) else target
        if not 0 < share < 1:
            raise mka.UserError(
                f"sparsities: {sparsities!r} asks for {share:g} of zeros; expected a share above 0 "
                "and below 1"
            )
    return found


def main(
    data: str = "digits",
    sparsities: str = "0.5,0.8,0.9,2:4",
    model_uri: str = "",
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.02,
    epochs: PositiveInt = 15,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 1e-3,
    seed: NonNegativeInt = 0,
) -> None:
    """Prunes one net to several sparsities and compares them.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), a folder of images, or the path of
            an .npz file.
        sparsities: Shares of zeros, such as 0.8, or patterns, such as 2:4, separated by commas.
        model_uri: A logged Keras model to prune, as models:/digits@champion; empty: train one.
        max_accuracy_drop: How much validation accuracy the variant chosen may lose.
        epochs: Epochs of the baseline and of each pruning.
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        seed: Seed of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    wanted = targets(sparsities)
    images = load(data, seed=seed)
    of_training = {"lr": lr, "epochs": epochs, "batch_size": batch_size}

    record = {"dataset": images.dataset, "seed": seed, "variants": 1 + len(wanted)}
    with mka.technique("prune", params, **record) as technique:
        trade = mka.TradeOff(technique, images)
        model = baseline(technique, trade, images, model_uri=model_uri, **of_training)
        differences = []
        for name, target in wanted.items():
            with technique.variant(name, params={"sparsity": str(target)}):
                pruned = mka.compression.prune(
                    model,
                    images.train,
                    sparsity=target,
                    **training(model, images, **of_training),
                )
                trade.add(pruned)
            rows = [row for row in pruned.layers if row.target is not None]
            differences += [abs(row.sparsity - row.target) for row in rows]

        curves = ("train/loss", "val/accuracy", "batch/sparsity")
        conclude(
            technique,
            trade.choose(margin=max_accuracy_drop, curves=curves),
            mka.Claim(
                "sparsity_difference",
                "largest difference between the sparsity asked of a layer and the one it has",
                max(differences),
                at_most=0.01,
            ),
            max_accuracy_drop=max_accuracy_drop,
            bytes_left=lambda final: 1 - 0.75 * final["sparsity"],
        )


if __name__ == "__main__":
    entry_point.run(main, extra="compression")
