"""technique(): the record of one technique: its run, a nested run per variant, its claims."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import numpy as np

from mlflow_keras_adv.comparison.report import compare_variants
from mlflow_keras_adv.evaluation.finished_model import FinishedModel, log_finished_model
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.claims import Claim, log_claims
from mlflow_keras_adv.tracking.directions import AskedMode
from mlflow_keras_adv.tracking.run import Run, run_of, track
from mlflow_keras_adv.tracking.values import Dataset


class Named(Protocol):
    """Data that know their name and digest, such as `registry.Samples`."""

    @property
    def dataset(self) -> Dataset:
        """Name and digest."""


class Technique:
    """The run of a technique, and the nested runs of its variants. Made by `technique`.

    Attributes:
        run: The run; the parent of the variants.
        seed: The random seed at which it and each variant begin.
        variants: The nested runs that have ended, by name.
        finished: The logged models, by name.
    """

    def __init__(
        self, run: Run, tags: Mapping[str, object], dataset: Dataset | None, seed: int, count: int
    ) -> None:
        self.run = run
        self.variants: dict[str, Run] = {}
        self.finished: dict[str, FinishedModel] = {}
        self._tags = tags
        self._dataset = dataset
        self.seed = seed
        self._count = count
        self._choice = ""

    @contextmanager
    def variant(self, name: str, *, params: Mapping[str, object] | None = None) -> Iterator[Run]:
        """Opens the nested run of a variant, and prints its name.

        The random seed is set again, so that variants of the same architecture begin with the same
        weights and see the examples in the same order.

        Args:
            name: Name of the nested run and its model; short, with distinct first letters.
            params: Parameters that differ from the parent's.

        Yields:
            The nested run.
        """
        print(f"[{len(self.variants) + 1}/{self._count}] {name}", flush=True)
        with self.run.child(name, params=params, tags=self._tags) as child:
            keras.utils.set_random_seed(self.seed)
            yield child
        self.variants[name] = child

    def finish(
        self,
        model: keras.Model,
        x: Any,
        y: np.ndarray | None = None,
        *,
        name: str | None = None,
        run: Run | str | None = None,
        scores: Mapping[str, float] | None = None,
        reference: keras.Model | None = None,
        parent_model_id: str | None = None,
    ) -> FinishedModel:
        """Logs a finished model with its `final/…` metrics, and keeps them in `finished`.

        Args:
            model: See `log_finished_model` for this and the other arguments.
            x: Test samples.
            y: Their labels.
            name: Name of the model. Default: the name of its run, or of the technique.
            run: The run that made it, or its id. Default: the current run.
            scores: Further scores, by name.
            reference: A model to compare its outputs with.
            parent_model_id: Id of the LoggedModel that it was made from.

        Returns:
            The model's entry in the store, and its `final/…` metrics.

        Raises:
            TypeError: The run is no run, or the model no Keras model.
            UserError: No run is open.
        """
        run = run_of(run, "finish")
        name = name or self._name_of(run)
        self.finished[name] = log_finished_model(
            model,
            x,
            y,
            name=name,
            run=run,
            scores=scores,
            dataset=self._dataset,
            reference=reference,
            parent_model_id=parent_model_id,
        )
        return self.finished[name]

    def finish_file(
        self,
        content: bytes,
        x: Any,
        y: np.ndarray | None = None,
        *,
        name: str | None = None,
        run: Run | str | None = None,
        reference: Any = None,
        parent_model_id: str | None = None,
    ) -> FinishedModel:
        """Logs a `.tflite` file as `finish` logs a model, and keeps its metrics in `finished`.

        Args:
            content: The file.
            x: Test samples.
            y: Their labels.
            name: Name of the model. Default: the name of its run, or of the technique.
            run: The run that made it, or its id. Default: the current run.
            reference: The Keras model or file that it was made from; see `log_finished_file`.
            parent_model_id: Id of the LoggedModel that it was made from.

        Returns:
            The model's entry in the store, and its `final/…` metrics.

        Raises:
            TypeError: The run is no run.
            UserError: No run is open.
        """
        from mlflow_keras_adv.evaluation.finished_file import log_finished_file  # needs LiteRT

        run = run_of(run, "finish_file")
        name = name or self._name_of(run)
        self.finished[name] = log_finished_file(
            content,
            x,
            y,
            name=name,
            run=run,
            dataset=self._dataset,
            reference=reference,
            parent_model_id=parent_model_id,
        )
        return self.finished[name]

    def _name_of(self, run: Run) -> str:
        return str(self._tags["technique"]) if run is self.run else run.name

    def final(self, key: str) -> dict[str, float]:
        """Collects a `final/…` metric of the finished models that have it.

        Args:
            key: Name of the metric without `final/`.

        Returns:
            Values by the names of the models.
        """
        finals = {name: each.final for name, each in self.finished.items()}
        return {name: final[key] for name, final in finals.items() if key in final}

    def compare(
        self,
        *,
        candidates: Sequence[str] | None = None,
        monitor: str | None = None,
        mode: AskedMode = "auto",
        curves: Sequence[str] = (),
    ) -> str:
        """Logs the comparison of the variants to the run; see `log_comparison`.

        Args:
            candidates: Names of the variants that can win. Default: all.
            monitor: The metric that decides.
            mode: Whether the highest ("max") or the lowest ("min") wins; "auto": see there.
            curves: Metrics whose curves the figure shows.

        Returns:
            The winner's name.

        Raises:
            ValueError: As `log_comparison`.
        """
        winner, decided_by = compare_variants(
            self.run,
            self.variants,
            candidates=candidates,
            monitor=monitor,
            mode=mode,
            curves=curves,
        )
        chosen_before = candidates is not None and len(candidates) == 1  # by another measure
        self._choice = "" if chosen_before or not winner else f"Best by {decided_by}: {winner}."
        return winner

    def conclude(self, result: str, *claims: Claim, note: str = "") -> None:
        """Ends the lesson: logs and prints its claims and its result.

        Args:
            result: The result in a sentence or two, the first line of the description.
            *claims: The claims of the technique, the most important one first.
            note: The end of the description, in Markdown.
        """
        lines = log_claims(*claims, run=self.run)
        parts = (result, lines, self._choice, note)
        self.run.describe("\n\n".join(part for part in parts if part))
        print(f"{result}\n{lines}", flush=True)


@contextmanager
def technique(
    name: str,
    params: Mapping[str, object],
    *,
    dataset: Dataset | Named | None = None,
    seed: int | None = None,
    variants: int = 0,
) -> Iterator[Technique]:
    """Opens or adopts the run of a technique, as `track` does, and sets the random seed.

    The run and its variants have the tag `technique`.

    Args:
        name: Name of the technique, and of a new run. The run of an entry point is also named after
            the first parameters that differ from their defaults.
        params: The parameters of the run.
        dataset: The data, or their name and digest.
        seed: Seed of Python's, NumPy's and TensorFlow's random numbers, 0 or more. Default: the
            parameter `seed`, else 0.
        variants: Number of nested runs to come, which the console shows.

    Yields:
        The technique's record.
    """
    tags = {"technique": name}
    if seed is None:
        seed = int(str(params.get("seed", 0)))
    if dataset is not None and not isinstance(dataset, Dataset):
        dataset = dataset.dataset
    with track(entry_point.run_name(name), params=params, tags=tags) as run:
        if dataset is not None:
            run.log_dataset(dataset, context="training")
        keras.utils.set_random_seed(seed)
        yield Technique(run, tags, dataset, seed, variants)
