"""A model in a process of its own; that one answers is shown by the technique custom_layer too."""

import keras
import numpy as np
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.evaluation.fresh_process import predict_in_new_process


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_error_that_says_so(experiment: str) -> None:
    uri = "models:/m-0123456789"
    with pytest.raises(mka.UserError, match=rf"{uri} does not answer .*m-0123456789"):
        predict_in_new_process(uri, np.zeros((1, 2)))


@pytest.mark.slow
def test_numbers_and_texts_arrive_by_the_names_of_the_inputs(experiment: str) -> None:
    """Whatever these are: `file` is an argument of numpy.savez."""
    number, word = keras.Input((1,), name="file"), keras.Input((1,), name="a word", dtype="string")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(word)
    both = keras.layers.Concatenate()([number, keras.ops.cast(looked_up, "float32")])
    model = keras.Model({"file": number, "a word": word}, keras.layers.Dense(2)(both))
    words = np.array([["b"], ["a"], ["ä, never seen"]], dtype=object)
    x = {"file": np.array([[1.5], [-2.0], [0.0]], np.float32), "a word": words}

    with mka.track("words", log_system_metrics=False) as run:
        info = mka.log_model(model, name="words", run=run, input_example=x)

    there = predict_in_new_process(info.model_uri, x)
    np.testing.assert_allclose(there, model(x), rtol=0, atol=1e-6)
