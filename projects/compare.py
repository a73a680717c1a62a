"""Comparison: any runs side by side, on one page that opens from disk.

It takes runs, experiments or a search, and shows: the metrics with mean and spread over seeds (runs
that differ in nothing but a seed are one variant), the parameters that differ, curves, accuracy
over size and over latency, gradients and pictures side by side. What to expect: the artifacts
`comparison/report.html` and `comparison/table.json` of the run, and the address of MLflow's own
charts of the same runs. Seconds; 500 runs take longest to be looked up.

    mlflow run . -e compare --env-manager local -P experiments=Default -P by=lr
"""

from typing import Literal

from pydantic import PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point


def main(
    experiments: str = "",
    runs: str = "",
    filter: str = "",
    by: str = "",
    monitor: str = "",
    mode: Literal["auto", "min", "max"] = "auto",
    max_runs: PositiveInt = 500,
) -> None:
    """Compares runs on one page.

    Args:
        experiments: Names or ids, separated by commas. Without any, and without runs, that of the
            run itself.
        runs: Ids, separated by commas; one with nested runs stands for these.
        filter: As for mlflow.search_runs, for example "params.lr = '0.01'".
        by: Parameters that make a variant, separated by commas, name for the run's name; all of
            them where nothing is given.
        monitor: Metric to sort by; final/accuracy, else another, where nothing is given.
        mode: Which way it is better, where the runs do not say it.
        max_runs: At most this many runs are compared, the newest.
    """
    with mka.track(
        entry_point.run_name("comparison"),
        tags={"technique": "comparison"},
        log_system_metrics=False,
    ) as run:
        found = mka.compare(
            parts(runs),
            experiments=parts(experiments) or ([] if runs else [run.experiment_id]),
            filter_string=filter,
            by=parts(by),
            monitor=monitor or None,
            mode=mode,
            max_runs=max_runs,
        )
        run.describe(found.sentence)
        print(found)


def parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    entry_point.run(main)
