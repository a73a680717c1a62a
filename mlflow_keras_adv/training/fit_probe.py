"""FitProbe: observes the step that `fit` makes, which it compiles by itself."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.training.aside import aside
from mlflow_keras_adv.training.observe import reduced, wrap_method
from mlflow_keras_adv.training.recorder import StepRecorder


class FitProbe:
    """Wraps the `train_step` of one model, so that `fit` writes a row a batch, with its loss.

    Args:
        model: The model that is trained.
        advance: Called with each batch before its step, inside the graph.
        recorder: The table that the loss is written to.
    """

    def __init__(self, model: Any, advance: Callable[[Any], None], recorder: StepRecorder) -> None:
        self._model = model
        self._advance = advance
        self._recorder = recorder
        self._found_function = model.train_function
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Wraps the model's methods on the instance; `choose_train_function` is to follow."""
        model, recorder = self._model, self._recorder

        def train_step(original: Callable[..., Any], data: Any) -> Any:
            self._advance(data)
            with _in_train_step_of(model):
                return original(data)

        def compute_loss(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            if getattr(_stepping, "model", None) is model and loss is not None:
                recorder.write("batch/loss", reduced(tf.reduce_sum(aside(loss))))
            return loss

        self._undo.append(wrap_method(model, "compute_loss", compute_loss))
        self._undo.append(wrap_method(model, "train_step", train_step))

    def choose_train_function(self, tables: Iterable[StepRecorder]) -> None:
        """Has `fit` call a train function that goes through the wrappers, as Keras' own does not.

        One that was made for an earlier `fit`, and traced by it, serves again as long as Keras
        would go on with its own. It is kept on Keras' function, and so until `compile` drops that.

        Args:
            tables: What the step writes to; with others it has to be traced anew.
        """
        made = getattr(self._found_function, "__dict__", {}).setdefault("observed", {})
        key = tuple(tables)
        if key not in made:
            self._model.make_train_function(force=True)
            made[key] = self._model.train_function
        self._model.train_function = made[key]

    def detach(self) -> None:
        """Puts the methods and the train function back."""
        while self._undo:
            self._undo.pop()()
        self._model.train_function = self._found_function


_stepping = threading.local()  # the model whose train_step runs: evaluation, too, computes a loss


@contextmanager
def _in_train_step_of(model: Any) -> Iterator[None]:
    outer = getattr(_stepping, "model", None)
    _stepping.model = model
    try:
        yield
    finally:
        _stepping.model = outer
