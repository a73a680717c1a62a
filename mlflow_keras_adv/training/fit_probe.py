"""FitProbe: observes the training step that `fit` compiles."""

import inspect
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.replacing import Replacement
from mlflow_keras_adv.training.aside import aside
from mlflow_keras_adv.training.cluster import over_replicas, sums_over_replicas
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.recorder import StepRecorder
from mlflow_keras_adv.training.watching import Watch, watch_method

# Of what a `train_step` of a user's own returns, at most so many scalars are recorded.
MAX_RETURNED = 64


class FitProbe:
    """Observes the `train_step` of one model, so that `fit` writes a row per batch with its loss.

    Args:
        model: The model that is trained.
        advance: Called with each batch before its step, inside the graph.
        recorder: The table that the loss is written to.
        changed: Called when the model has been compiled anew.
    """

    def __init__(
        self,
        model: Any,
        advance: Callable[[Any], None],
        recorder: StepRecorder,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.recorder = recorder
        self._model = model
        self._advance = advance
        self._changed = changed
        self._function: Replacement | None = None
        self._step_watch: Watch | None = None
        self._own_step = _is_of_its_author(model, "train_step")
        self._making = Fence(f"The steps of {model.name!r}")
        self._loss_is_seen = False
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Looks at the model's methods, on the instance; `choose_train_function` is to follow."""
        name = self._model.name
        for method, look, what in (
            ("compute_loss", self._look_at_loss, f"batch/loss of {name!r}"),
            ("compile", self._look_at_compile, f"The new settings of {name!r}"),
        ):
            self._undo.append(watch_method(self._model, method, look, what=what))

    def choose_train_function(self, tables: Iterable[StepRecorder]) -> None:
        """Has `fit` call a train function that goes through the looks, as Keras' own does not.

        One that was made for an earlier `fit`, and traced by it, serves again as long as Keras
        would go on with its own. It is kept on Keras' function, and so until `compile` drops that.

        Args:
            tables: What the step writes to; with others it has to be traced anew.
        """
        model = self._model
        if self._function is not None:
            self._function.end()
        found = model.train_function
        made = getattr(found, "__dict__", {}).setdefault("observed", {})
        key = tuple(tables)
        _, watch = made.get(key, (None, self._step_watch))
        if watch is None:
            watch = Watch(model, "train_step", what=f"The steps of {model.name!r}")
        if watch is not self._step_watch:
            if self._step_watch is not None:
                self._step_watch.end()
            self._step_watch = watch
            watch.begin(self._look_at_step)
        if key not in made:
            with self._making():
                made[key] = self._made_anew(), watch
        chosen, _ = made.get(key, (found, watch))
        self._function = Replacement(model, "train_function", chosen)
        self._function.begin()

    def detach(self) -> None:
        """Puts back what is still ours: the methods, and the train function.

        One that was made since, after a `compile` in the middle of the training, is left alone.
        """
        while self._undo:
            self._undo.pop()()
        if self._step_watch is not None:
            self._step_watch.end()
            self._step_watch = None
        if self._function is not None:
            self._function.end()
            self._function = None

    def _made_anew(self) -> Any:
        """A train function that is traced with our looks; the model keeps the one that it has."""
        model, found = self._model, self._model.train_function
        make = model.make_train_function
        try:
            if "force" in inspect.signature(make).parameters:
                make(force=True)
            else:  # a user's own, which knows no other way of being asked again
                model.train_function = None
                make()
            return model.train_function
        finally:
            model.train_function = found

    def _look_at_step(self, data: Any, *rest: Any, **named: Any) -> Generator[None, Any, None]:
        self._advance(data)
        self._loss_is_seen = False
        outer = getattr(_stepping, "model", None)
        _stepping.model = self._model
        try:
            returned = yield
        finally:
            _stepping.model = outer
        if self._own_step:
            self._record_returned(returned)

    def _look_at_loss(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        loss = yield
        # Evaluation, too, computes a loss.
        if getattr(_stepping, "model", None) is self._model and loss is not None:
            (total,) = sums_over_replicas([tf.reduce_sum(aside(loss))])
            self.recorder.write("batch/loss", total)
            self._loss_is_seen = True

    def _look_at_compile(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        yield
        self._changed()

    def _record_returned(self, returned: Any) -> None:
        """Records the values that a custom train step returns."""
        if not isinstance(returned, Mapping):
            return
        scalars = {
            f"batch/{name}": value
            for name, value in returned.items()
            if _is_scalar(value) and not (name == "loss" and self._loss_is_seen)
        }
        chosen = dict(list(scalars.items())[:MAX_RETURNED])
        self.recorder.write_all(over_replicas(chosen, mean=True))


_stepping = threading.local()  # the model whose train_step runs


def _is_of_its_author(model: Any, method: str) -> bool:
    """Whether a method of a model is its author's, not Keras' own."""
    if method in vars(model):
        return True
    owner = next(each for each in type(model).__mro__ if method in vars(each))
    return owner.__module__.partition(".")[0] not in ("keras", "tf_keras")


def _is_scalar(value: Any) -> bool:
    if isinstance(value, keras.KerasTensor):
        return False
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError):
        return False
    return tensor.shape.rank == 0 and (tensor.dtype.is_floating or tensor.dtype.is_integer)
