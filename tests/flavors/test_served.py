"""What cannot be served as it was trained is refused before anything is created in the store."""

from importlib import import_module, invalidate_caches
from types import ModuleType

import keras
import mlflow
import numpy as np
import pytest

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.flavors.keras import log_model

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")

LAYERS = '''
import keras
import tensorflow as tf

class Forgetful(keras.layers.Layer):
    """Its get_config() leaves out what it multiplies by."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return super().get_config() | {"factor": 1.0}

class Restless(keras.layers.Layer):
    """Draws random numbers when it predicts."""

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs))

class Unloadable(keras.layers.Layer):
    """Demands an argument that its get_config() does not give."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {"name": self.name}

class OnlyEager(keras.Model):
    """Its call() looks at numbers, which a graph does not have."""

    def build(self, shape):
        self.built = True

    def call(self, inputs):
        return inputs * float(inputs.numpy().max())

class Eager(keras.Model):
    """Does something else in a graph."""

    def build(self, shape):
        self.built = True

    def call(self, inputs):
        return inputs if tf.executing_eagerly() else 2 * inputs
'''


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("layers")
    (folder / "se_layers.py").write_text(LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        invalidate_caches()
        yield import_module("se_layers")


def log(layer: keras.layers.Layer) -> None:
    if isinstance(layer, keras.Model):
        layer(X)
        model = layer
    else:
        model = keras.Sequential([keras.Input((3,)), layer])
    log_model(model, name="m", input_example=X)


def test_a_layer_that_forgets_an_argument_is_found_out(
    layers: ModuleType, client: mlflow.MlflowClient, experiment: str
) -> None:
    log(layers.Forgetful(1.0))
    with pytest.raises(UserError, match=r"(?s)answers differently.*get_config"):
        log(layers.Forgetful(2.0))
    with pytest.raises(
        UserError, match=r"cannot be loaded again: .*Unloadable.__init__\(\) missing .*factor"
    ):
        log(layers.Unloadable(2.0))
    assert len(client.search_logged_models([experiment])) == 1


def test_a_model_that_draws_random_numbers_passes(layers: ModuleType, experiment: str) -> None:
    log(layers.Restless())


def test_a_model_that_answers_in_eager_mode_only_is_found_out(
    layers: ModuleType, client: mlflow.MlflowClient, experiment: str
) -> None:
    with pytest.raises(UserError, match=r"predict cannot have it answer its input example"):
        log(layers.OnlyEager())
    with pytest.raises(UserError, match=r"(?s)differently.*mlflow.pyfunc's predict.*in a graph"):
        log(layers.Eager())
    assert client.search_logged_models([experiment]) == []
