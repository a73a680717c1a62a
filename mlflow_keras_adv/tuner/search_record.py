"""The run of a search: its settings, its progress, its best trial, and a report of all trials.

It is written by the process that has the oracle: the one that searches, or Keras Tuner's chief.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from mlflow_keras_adv.compat.keras_tuner import is_chief_oracle
from mlflow_keras_adv.flavors.keras import log_model
from mlflow_keras_adv.tracking.orphaned_journals import deliver_orphaned
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.tracking.store import store_errors_for_users
from mlflow_keras_adv.tuner.figures import (
    history_figure,
    importance_figure,
    parallel_coordinates_figure,
)
from mlflow_keras_adv.tuner.hooks import harmless
from mlflow_keras_adv.tuner.importance import hyperparameter_importance
from mlflow_keras_adv.tuner.run_ids import note, read_run_ids
from mlflow_keras_adv.tuner.trial_table import (
    COLUMNS,
    active_values,
    described_space,
    score_for,
    trial_name,
    trials_table,
)

# The time of a report grows with the trials, so it may take this share of the whole time.
REPORT_SHARE = 0.01
REPORT_SECONDS = 30.0
# Settings of an oracle that bound or steer a search, if it has them.
_ORACLE_SETTINGS = (
    "max_trials",
    "max_epochs",
    "factor",
    "hyperband_iterations",
    "num_initial_points",
    "alpha",
    "beta",
    "max_retries_per_trial",
    "max_consecutive_failed_trials",
    "seed",
)


class SearchRecord:
    """Writes one search to its run.

    Each trial that ends costs the same: two points and two tags. The table and the figures are
    written at the end, and before only so often that they take `REPORT_SHARE` of the time.

    Args:
        run: The run of the search.
        tuner: Its tuner, which holds the oracle itself and not a client of it.
        clock: Returns seconds.
        example: A few samples for logging the best trial's model at the end; None: it is not
            logged.
    """

    def __init__(
        self,
        run: Run,
        tuner: Any,
        clock: Callable[[], float] = time.monotonic,
        *,
        example: Any = None,
    ) -> None:
        self._run = run
        self._tuner = tuner
        self._oracle: keras_tuner.Oracle = tuner.oracle
        self._objective = self._oracle.objective
        self._clock = clock
        self._next_report = clock() + REPORT_SECONDS
        self._best: Any = None
        self._best_score = 0.0
        self._failed = 0
        self._example = example

    @harmless
    def begin(self) -> None:
        """Logs the settings, and for a continued search also its earlier results."""
        self._run.set_tags({"technique": "search"})
        self._run.log_params({"tuner": self._settings()})
        for trial_id in self._oracle.end_order:
            self._count(self._oracle.trials[trial_id])
            # Of a process that was killed: what was still on its way.
            for run_id in read_run_ids(self._tuner.get_trial_dir(trial_id)).values():
                deliver_orphaned(run_id)
        self._log_space()
        self._say_how_far()

    @harmless
    def trial_ended(self, trial: Any) -> None:
        """Counts a trial that the oracle has ended for good."""
        self._count(trial)
        ended = len(self._oracle.end_order)
        values: dict[str, float] = {}
        if (score := score_for(self._oracle, trial)) is not None:
            values = {"search/score": score, "search/best_score": self._best_score}
        self._run.log_metrics(values, step=ended)
        self._say_how_far()
        if self._clock() >= self._next_report:
            began = self._clock()
            self._report()
            took = self._clock() - began
            self._next_report = began + max(REPORT_SECONDS, took / REPORT_SHARE)

    @harmless
    def finish(self) -> None:
        """Reports on all trials, and gives the run the values of the best."""
        self._log_space()
        self._say_how_far(ended=True)
        if self._best is not None:
            best = {"trial/score": self._best_score, "trial/best_step": self._best.best_step}
            self._run.log_metrics(best, step=0, model_id=self._log_best_model())
        self._report()
        if is_chief_oracle():
            self._end_left_behind()

    @property
    def failure(self) -> RuntimeError | None:
        """The error of the search, if every trial of it has failed."""
        if self._best is not None or not self._oracle.end_order:
            return None
        last = self._oracle.trials[self._oracle.end_order[-1]]
        said = [line.strip() for line in (last.message or "").splitlines() if line.strip()]
        reason = said[-1] if said else f"its score is {last.score}"
        return RuntimeError(
            f"No trial is complete: each of {len(self._oracle.end_order)} has failed. Of "
            f"{trial_name(last.trial_id)}: {reason}"
        )

    def _count(self, trial: Any) -> None:
        score = score_for(self._oracle, trial)
        if score is None:
            self._failed += trial.status != "COMPLETED" or not trial.metrics.metrics
        elif self._best is None or self._objective.better_than(score, self._best_score):
            self._best, self._best_score = trial, score

    def _settings(self) -> Mapping[str, object]:
        settings: dict[str, object] = {
            "class": type(self._tuner).__name__,
            "oracle": type(self._oracle).__name__,
            "objective": self._objective.name,
            "direction": self._objective.direction,
            "project_name": self._tuner.project_name,
            "executions_per_trial": getattr(self._tuner, "executions_per_trial", 1),
        }
        if isinstance(of_each := getattr(self._objective, "name_to_direction", None), Mapping):
            settings["objectives"] = dict(of_each)
        found = {name: getattr(self._oracle, name, None) for name in _ORACLE_SETTINGS}
        return settings | {name: value for name, value in found.items() if value is not None}

    def _log_space(self) -> None:
        """Logs the space as readable params, and as JSON for `HyperParameters.from_config`."""
        space = self._oracle.get_space()
        self._run.log_params({"space": described_space(space)})
        self._run.log_dict(space.get_config(), "search_space.json")

    def _say_how_far(self, *, ended: bool = False) -> None:
        count, budget = len(self._oracle.end_order), self._oracle.max_trials
        trials = f"{count} of {budget} trials" if budget else f"{count} trials"
        failures = f", {self._failed} of them failed" if self._failed else ""
        if self._best is None:
            if ended and (failure := self.failure) is not None:
                self._run.describe(f"{failure}")
                return
            self._run.describe(f"No trial is complete yet, after {trials}{failures}.")
            return
        better = {"min": "lower", "max": "higher"}[self._objective.direction]
        name = trial_name(self._best.trial_id)
        rows = [f"| {key} | {value} |" for key, value in self._best_values().items()]
        table = "\n".join(["| hyperparameter | of the best |", "|---|---|", *rows])
        self._run.describe(
            f"Best {self._objective.name} {self._best_score:.6g} by {name} ({better} is better), "
            f"after {trials}{failures}.\n\n{table}"
        )
        self._run.set_tags({"winner": name})

    def _best_values(self) -> dict[str, Any]:
        return active_values(self._best.hyperparameters)

    def _report(self) -> None:
        table = trials_table(self._oracle)
        known = table.notna() & ~table.isin([np.inf, -np.inf])  # JSON has no other numbers
        rows = table.astype(object).where(known, None).to_numpy().tolist()
        # Not by log_table, which would download what is there and append to it.
        self._run.log_dict({"columns": list(table), "data": rows}, "trials.json")
        shown = [{"path": "trials.json", "type": "table"}]
        self._run.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps(shown)})
        if self._best is not None:
            config = self._best.hyperparameters.get_config()
            self._run.log_dict(config, "best_hyperparameters.json")
            finite = np.isfinite(table["score"].astype(float))
            self._draw(table[finite & table["status"].eq("COMPLETED")])

    @harmless
    def _log_best_model(self) -> str | None:
        """Logs the model as Keras Tuner loads it; once, even if a complete search is repeated."""
        folder, logged = self._tuner.project_dir, f"{self._run.run_id} {self._best.trial_id}"
        if self._example is None or read_run_ids(folder).get("best model") == logged:
            return None
        info = log_model(
            self._tuner.load_model(self._best),
            name="best",
            run=self._run,
            input_example=self._example,
            tags={
                "trial": trial_name(self._best.trial_id),
                "tuner.trial_id": self._best.trial_id,
            },
        )
        note(folder, "best model", logged)
        return info.model_id

    def _draw(self, complete: pd.DataFrame) -> None:
        scores = complete["score"].astype(float)
        values = complete.drop(columns=list(COLUMNS))
        of = self._objective.name, self._objective.direction
        self._run.log_figure(history_figure(scores, *of), "optimization_history.png")
        figure = parallel_coordinates_figure(values, scores, *of)
        self._run.log_figure(figure, "parallel_coordinates.png")
        if importance := hyperparameter_importance(values, scores):
            self._run.log_figure(importance_figure(importance), "hyperparameter_importance.png")
            self._run.log_dict(importance, "hyperparameter_importance.json")

    def _end_left_behind(self) -> None:
        """Ends the runs of trials whose worker was killed."""
        with store_errors_for_users():
            client = MlflowClient()
            for trial in self._oracle.ongoing_trials.values():
                for run_id in read_run_ids(self._tuner.get_trial_dir(trial.trial_id)).values():
                    if client.get_run(run_id).info.status == "RUNNING":
                        client.set_terminated(run_id, "KILLED")
