"""What each variant costs: ratios with their spread, as metrics, as a table and as a figure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from projects.measuring.turns import Pairs

LABELS = {
    "mlp": "MLP, batch 32",
    "cnn": "CNN on 28x28, batch 32",
    "large": "1.3 M parameters, batch 128",
    "bare": "bare `fit`",
    "ours": "`MlflowLogger`, every step",
    "ours_layers": "`MlflowLogger` with `LayerNorms`, every step",
    "mlflow_epoch": "MLflow's `MlflowCallback`, every epoch",
    "mlflow_step": "MLflow's `MlflowCallback`, every step",
    "wandb_step": "`WandbMetricsLogger`, every step, offline",
    "tensorboard_step": "Keras' `TensorBoard`, every step",
    "fit": "`fit`",
    "fit_8": "`fit`, 8 steps a call",
    "guide": "the loop of TensorFlow's guide",
    "loop": "`Loop`",
    "loop_8": "`Loop`, 8 steps a call",
    "loop_8_logged": "`Loop`, 8 steps a call, `MlflowLogger`",
}


@dataclass(frozen=True)
class Price:
    """Time of a step, as a multiple of that of a reference.

    Attributes:
        model: Name of the model.
        variant: What was measured.
        reference: What it is compared with.
        ratio: Median of two per round.
        lower_quartile: Lower quartile of the ratios.
        upper_quartile: Upper quartile of the ratios.
        rounds: Timed epochs of the variant.
        step_ms: Median time of a step, in milliseconds.
        reference_step_ms: The reference's.
        settling_ms: How long after 1000 steps until their values are delivered, in milliseconds.
    """

    model: str
    variant: str
    reference: str
    ratio: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    step_ms: float
    reference_step_ms: float
    settling_ms: float

    @classmethod
    def of(cls, pairs: Pairs, *, model: str, variant: str, reference: str, steps: int) -> Self:
        """Takes median and quartiles of turns of two epochs of `steps` steps."""
        # Of the logarithms: twice as slow and twice as fast have 1 in their middle.
        quartiles = np.quantile(np.log(pairs.ratios), [0.25, 0.5, 0.75])
        lower, ratio, upper = np.exp(quartiles).tolist()
        return cls(
            model=model,
            variant=variant,
            reference=reference,
            ratio=ratio,
            lower_quartile=lower,
            upper_quartile=upper,
            rounds=len(pairs.turns),
            step_ms=1000 * pairs.seconds / steps,
            reference_step_ms=1000 * pairs.reference_seconds / steps,
            settling_ms=1000 * pairs.settling * 1000 / (2 * steps),
        )

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.lower_quartile:.2f} to {self.upper_quartile:.2f})"


def metrics(prices: Sequence[Price]) -> dict[str, float]:
    """The prices of one model by name."""
    values = {}
    for price in prices:
        ratio = f"ratio_{price.variant}_to_{price.reference}"
        values |= {
            ratio: price.ratio,
            f"{ratio}_lower_quartile": price.lower_quartile,
            f"{ratio}_upper_quartile": price.upper_quartile,
            f"{price.variant}_step_ms": price.step_ms,
            f"{price.reference}_step_ms": price.reference_step_ms,
            f"{price.variant}_settling_ms": price.settling_ms,
        }
    return values


def data_frame(prices: Sequence[Price]) -> pd.DataFrame:
    """One row per price."""
    return pd.DataFrame([asdict(price) for price in prices])


def tables(prices: Sequence[Price]) -> list[str]:
    """A Markdown table for each reference: a row per variant, a column per model."""
    found = []
    for reference in dict.fromkeys(price.reference for price in prices):
        shown = {(p.variant, p.model): p for p in prices if p.reference == reference}
        models = list(dict.fromkeys(model for _, model in shown))
        first = [next(p for p in shown.values() if p.model == model) for model in models]
        rows = [
            ["time of a step", *(LABELS[model] for model in models), "delivered after 1000 steps"],
            ["---"] * (len(models) + 2),
            [LABELS[reference], *(f"1 = {p.reference_step_ms:.2f} ms" for p in first), ""],
        ]
        for variant in dict.fromkeys(variant for variant, _ in shown):
            cells = [str(shown[variant, model]) for model in models]
            settling = f"in {shown[variant, models[0]].settling_ms:.0f} ms"
            rows.append([LABELS[variant], *cells, settling])
        found.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return found


def figure(prices: Sequence[Price]) -> Figure:
    """A panel for each model and reference: the ratios with their quartiles."""
    panels = list(dict.fromkeys((price.model, price.reference) for price in prices))
    drawing = Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    for axes, panel in zip(drawing.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        shown = [price for price in prices if (price.model, price.reference) == panel][::-1]
        ratios = np.array([price.ratio for price in shown])
        quartiles = np.array([[p.lower_quartile, p.upper_quartile] for p in shown]).T
        places = range(len(shown))
        axes.errorbar(ratios, places, xerr=abs(quartiles - ratios), fmt="o", capsize=3)
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_yticks(places, [LABELS[price.variant].replace("`", "") for price in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        reference = LABELS[panel[1]].replace("`", "")
        axes.set(title=LABELS[panel[0]], xlabel=f"time of a step, {reference} = 1")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing
