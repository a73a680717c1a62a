"""The reliability diagram: how right a classifier is where it is how sure."""

import pandas as pd
from matplotlib.figure import Figure


def reliability_figure(table: pd.DataFrame, error: float) -> Figure:
    """Accuracy by confidence, with the count of samples below.

    Args:
        table: From `classification.calibration_table`.
        error: The expected calibration error, for the title.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = table["up_to"] - table["above"]
    bars = {"x": table["above"], "width": width, "align": "edge", "edgecolor": "white"}
    above.bar(height=table["accuracy"].fillna(0), color="C0", **bars)
    above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    above.set_title(f"expected calibration error {error:.3f}, {len(table)} bins")
    below.bar(height=table["samples"], color="0.6", **bars)
    below.set(xlabel="confidence", ylabel="samples")
    return figure
