"""Every public object of Keras' kind survives its config, `deepcopy` and `pickle`."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons.smoothing import SmoothedCrossentropy

KINDS = (
    keras.callbacks.Callback,
    keras.losses.Loss,
    schedules.LearningRateSchedule,
    keras.layers.Layer,
)
RUN = "0" * 32
# Each with every argument that it has, and none as its default is.
MADE: dict[type, Callable[[], Any]] = {
    mka.MlflowLogger: lambda: mka.MlflowLogger(RUN, class_names=["a", "b"], flops=True),
    mka.Checkpoints: lambda: mka.Checkpoints("loss", mode="min", keep=2, run=RUN),
    mka.LayerNorms: lambda: mka.LayerNorms(max_steps=3, as_metrics=True, run=RUN),
    mka.StallAlert: lambda: mka.StallAlert("loss", mode="min", patience=2, stop=True, run=RUN),
    mka.Predictions: lambda: mka.Predictions([1.0], [0], class_names="ab", every=2, run=RUN),
    mka.SoftTargets: lambda: mka.SoftTargets(2.5, each=True, name="mine"),
    mka.Hint: lambda: mka.Hint(teacher_layer="a", student_layer="b", name="mine"),
    SmoothedCrossentropy: lambda: SmoothedCrossentropy(0.25, name="mine"),
    mka.WarmUp: lambda: mka.WarmUp(schedules.CosineDecay(0.2, 40), 10, 0.1, name="mine"),
    mka.ConstantThenExponential: lambda: mka.ConstantThenExponential(0.1, 2, 8, 0.5, name="mine"),
    mka.CyclicalRate: lambda: mka.CyclicalRate(0.1, 0.2, 7, "exp_range", 0.9, name="mine"),
}
MODELS = {mka.Distiller}  # below
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda made: pickle.loads(pickle.dumps(made))}


def test_each_is_there() -> None:
    public = [getattr(home, name) for home in (mka, mka.compression) for name in home.__all__]
    found = {each for each in public if isinstance(each, type) and issubclass(each, KINDS)}
    assert found <= MADE.keys() | MODELS


def same(made: Any, other: Any) -> None:
    """What it was made of, and what it does."""
    assert type(other) is type(made)
    if isinstance(made, keras.callbacks.Callback):
        (func, *_), (func_of_other, *_) = made.__reduce__(), other.__reduce__()
        assert (func.func, func.args) == (func_of_other.func, func_of_other.args)
        assert func.keywords == func_of_other.keywords
        return
    assert other.get_config() == made.get_config()
    assert other.name == made.name == "mine"
    if isinstance(made, schedules.LearningRateSchedule):
        assert [float(other(step)) for step in range(20)] == [float(made(n)) for n in range(20)]
    else:
        true = np.array([[1], [0]]) if type(made) is SmoothedCrossentropy else np.eye(2)
        assert float(other(true, 3 * np.eye(2))) == float(made(true, 3 * np.eye(2)))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_it_survives_a_copy(kind: type, copied: Callable[[Any], Any]) -> None:
    made = MADE[kind]()
    same(made, copied(made))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in MADE if not issubclass(kind, keras.callbacks.Callback)],
    ids=lambda kind: kind.__name__,
)
def test_it_survives_its_config(kind: Any) -> None:
    made = MADE[kind]()
    same(made, kind.from_config(made.get_config()))
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    same(made, keras.saving.deserialize_keras_object(written))


def test_a_run_in_a_callback_is_kept_by_its_id(experiment: str) -> None:
    with mka.track("copied", log_system_metrics=False) as run:
        for callback in (mka.MlflowLogger(run), mka.Checkpoints("loss", run=run)):
            for copied in COPIES.values():
                assert copied(callback)._run_id == run.run_id


def test_a_callback_of_ones_own_is_copied_by_its_own_arguments() -> None:
    class Own(mka.Checkpoints):
        def __init__(self, folder: str) -> None:
            super().__init__("loss", keep=3)
            self.folder = folder

    own = copy.deepcopy(Own("here"))
    assert (type(own), own.folder, own._keep) == (Own, "here", 3)


def test_a_distiller_says_what_to_copy_instead() -> None:
    def net() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

    distiller = mka.Distiller(net(), net(), mka.SoftTargets())
    for copied in (keras.saving.serialize_keras_object, *COPIES.values()):
        with pytest.raises(NotImplementedError, match=r"Do so with `distiller\.student`"):
            copied(distiller)
