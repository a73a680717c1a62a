"""A small training that somebody owns and that ends in some way; what `test_ends.py` runs.

`python -m tests.ends_program OWNER END` is one cell of the matrix. Without arguments it imports
TensorFlow once, and forks a process for each cell that it reads: that takes a third of the time.
The owner `plain` is the same program without this package.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

BATCHES, EPOCHS = 8, 2
LAST = 12  # the step after which, or in which, a training that is to go wrong does
EXIT_CODE = 3

# What goes wrong in a hook, by the name of the end.
HOOKS: dict[str, Callable[[], object]] = {
    "batch": lambda: _raise(RuntimeError("in a batch's hook")),
    "epoch": lambda: _raise(RuntimeError("at an epoch's end")),
    "interrupt": lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)),
    "terminate": lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60)),
    "exit": lambda: sys.exit(EXIT_CODE),
    "os_exit": lambda: os._exit(EXIT_CODE),
}
IN_FIT = ("track", "autolog", "callback", "with_start_run", "start_run", "mlflow_run")
LOOPS = ("track_loop", "loop")


def _raise(error: Exception) -> None:
    raise error


class Cell:
    """One training program.

    Args:
        owner: Who opens the run.
        end: How it ends; `…_caught` is caught by the user, who goes on to the end of the program.
        record: File that receives, after each step, the number of the training and of the step.
    """

    def __init__(self, owner: str, end: str, record: Path) -> None:
        import keras
        import numpy as np
        import tensorflow as tf

        self.owner = owner
        self.end = "interrupt" if end == "again" else end.removesuffix("_caught")
        self.again = end == "again"
        self.caught = end.endswith("_caught") or self.again
        self._record = record
        self._training = self._steps = 0
        self._keras, self._tf = keras, tf

        class Fragile(keras.layers.Layer):
            def call(self, x: Any) -> Any:
                # In a graph the rest of the step would go on beside an assertion.
                with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 100.0)]):
                    return tf.identity(x)

        self.model = keras.Sequential([keras.Input((4,)), Fragile(), keras.layers.Dense(1)])
        self.model.compile("sgd", "mse", jit_compile=False)  # XLA leaves assertions out
        self._x = np.ones((8 * BATCHES * EPOCHS, 4), np.float32)
        if self.end == "step":
            self._x[8 * (LAST - 1)] = 1000.0
        self._y = np.ones((len(self._x), 1), np.float32)

    def run(self) -> None:
        """The user's script."""
        if self.owner == "autolog":
            import mlflow_keras_adv as mka

            mka.autolog()
        if self.owner == "start_run":
            import mlflow

            mlflow.start_run()
        if self.end == "generator":
            self.kept = self._drawn_out()
            next(self.kept)
            return
        try:
            self._owned()
        except BaseException:
            if not self.caught:
                raise
        if self.again:
            self.end = "return"
            self._owned()

    def _drawn_out(self) -> Iterator[None]:
        """A generator of the user's, which is collected when the interpreter ends."""
        with self._place():
            if self.owner not in LOOPS:
                self._fit()
                yield
                return
            for _ in self._steps_of_loop():
                if self._steps == LAST:
                    yield

    def _owned(self) -> None:
        with self._place():
            if self.owner in LOOPS:
                for _ in self._steps_of_loop():
                    pass
            else:
                self._fit()

    def _place(self) -> AbstractContextManager[Any]:
        import mlflow

        import mlflow_keras_adv as mka

        if self.owner in ("track", "track_loop"):
            return mka.track()
        return mlflow.start_run() if self.owner == "with_start_run" else nullcontext()

    def _callbacks(self) -> list[Any]:
        cell = self

        class Hooks(self._keras.callbacks.Callback):  # type: ignore[name-defined, misc]
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if cell.owner not in LOOPS:
                    cell._made()
                if cell._steps == LAST and cell.end in HOOKS and cell.end != "epoch":
                    HOOKS[cell.end]()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                if cell.end == "epoch":
                    HOOKS["epoch"]()

        if self.owner in ("plain", "autolog"):
            return [Hooks()]
        import mlflow_keras_adv as mka

        return [mka.MlflowLogger(), Hooks()]

    def _data(self, epoch: int | None = None) -> Any:
        data = self._tf.data.Dataset.from_tensor_slices((self._x, self._y)).batch(8)
        return data if epoch is None else data.skip(BATCHES * epoch).take(BATCHES)

    def _validation(self) -> Any:
        x = self._x[:8].copy()
        x[:] = 1000.0 if self.end == "validation" else 1.0
        return x, self._y[:8]

    def _fit(self) -> None:
        self._begins()
        self.model.fit(
            self._data(),
            steps_per_epoch=BATCHES,
            epochs=EPOCHS,
            validation_data=self._validation(),
            callbacks=self._callbacks(),
            verbose=0,
        )

    def _steps_of_loop(self) -> Iterator[None]:
        import mlflow_keras_adv as mka

        tf, optimizer = self._tf, self._keras.optimizers.SGD(0.01)
        loop = mka.Loop(self.model, optimizers=optimizer, callbacks=self._callbacks(), verbose=0)

        @tf.function
        def train_step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self.model(x, training=True) - y))
            variables = self.model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            loop.record(loss=loss)

        self._begins()
        for epoch in loop.epochs(EPOCHS):
            for x, y in loop.batches(self._data(epoch)):
                train_step(x, y)
                self._made()
                yield
            loop.log(val_loss=self.model.evaluate(*self._validation(), verbose=0))

    def _begins(self) -> None:
        self._training, self._steps = self._training + 1, 0

    def _made(self) -> None:
        self._steps += 1
        with self._record.open("a") as record:
            record.write(json.dumps([self._training, self._steps]) + "\n")


def main() -> None:
    """Reads one cell a line: its arguments, environment, files, and how long it may take."""
    import keras  # noqa: F401
    import mlflow  # noqa: F401

    import mlflow_keras_adv as mka

    _ = mka.track, mka.MlflowLogger, mka.Loop, mka.autolog
    gc.freeze()  # what a child inherits need not be collected when that ends: seconds for each
    print(json.dumps("ready"), flush=True)
    while line := sys.stdin.readline():
        asked = json.loads(line)
        process = os.fork()
        if process == 0:
            said = os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(said, descriptor)
            os.environ.update(asked["environment"])
            global kept
            kept = Cell(asked["owner"], asked["end"], Path(asked["record"]))
            kept.run()
            return
        print(json.dumps(_code(process, asked["seconds"])), flush=True)


def _code(process: int, seconds: float) -> int | None:
    """The exit code of a process; None if it has to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


kept: Cell | None = None

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is deaf to it
    if len(sys.argv) > 1:
        kept = Cell(*sys.argv[1:3], Path(sys.argv[3]))
        kept.run()
    else:
        main()
