"""Onlooker: where a callback beside `MlflowLogger` stands: at which training, run and step."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.run import Run, attach_run, current_run
from mlflow_keras_adv.training.batches import steps_per_execution
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.session import join_session
from mlflow_keras_adv.training.trainings import training_of

_logger = logging.getLogger(__name__)

Receive = Callable[[Readings, np.ndarray[Any, Any]], None]


class Onlooker:
    """One callback's place at one training.

    The step is the number of training batches consumed in the run, with and without `MlflowLogger`
    and in whatever order the callbacks stand.

    Attributes:
        run: The run to write to.
    """

    def __init__(self, run: Run, callback: Any, receive: Receive | None) -> None:
        self.run = run
        self._model = callback.model
        self._hand_out = receive
        self._session = join_session(callback.model, token=callback.params)
        self._session.subscribe(self._receive)
        self._fences: dict[str, Fence] = {}
        self._withdraw = [run.on_exit(callback.leave)]
        if (training := training_of(callback.model)) is not None:
            self._withdraw.append(training.at_end(lambda _: callback.leave()))

    @classmethod
    def join(
        cls, callback: Any, run_id: str | None, *, receive: Receive | None = None
    ) -> Self | None:
        """Joins the training that begins, or says why not.

        Args:
            callback: A Keras callback in `on_train_begin`; its method `leave` is called if its run
                ends before the training does, as it does by an exception.
            run_id: The run to write to. Default: the innermost `track`, else MLflow's active run.
            receive: Called with each reading and the steps of its batches, shape `[batches]`.

        Returns:
            None if there is no run, which is logged and no reason to stop a training.
        """
        name = type(callback).__name__
        try:
            run = attach_run(run_id) if run_id is not None else current_run()
        except UserError as error:
            _logger.warning("%s does nothing in this training: %s", name, error)
            return None
        if run is None:
            _logger.warning(
                "%s does nothing in this training: it has no run to write to. Train inside `with "
                "track():`, put it after MlflowLogger in the list of callbacks, or pass it a run.",
                name,
            )
            return None
        return cls(run, callback, receive)

    def observe_layers(self) -> None:
        """Has the readings hold the norm of each layer's gradient too."""
        self._session.observe_layers()

    def batch_begin(self, batch: int) -> None:
        """To be called at the begin of each batch by who wants every row of the readings."""
        self._session.steps_begin(steps_per_execution(self._model), batch)

    def step(self) -> int:
        """Training batches consumed so far in the run, up to now."""
        self._session.read()
        return self.run.axis.batches

    def leave(self) -> None:
        """Takes part no longer; what is left to read is handed out before."""
        for withdraw in self._withdraw:
            withdraw()
        self._session.unsubscribe(self._receive)

    def spares_training(self, task: str) -> AbstractContextManager[None]:
        """Ends the block, and not the training, when something in it fails; says so once.

        Args:
            task: What is done in the block, as the subject of a sentence.
        """
        return self._fences.setdefault(task, Fence(task, tries_again=True))()

    def _receive(self, readings: Readings) -> None:
        steps = self.run.axis.steps_of(readings, readings.batches)
        if self._hand_out is not None:
            self._hand_out(readings, steps)
