"""A model in a process of its own; that one answers is shown by the technique custom_layer."""

import numpy as np
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.new_process import predict_in_new_process


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_error_that_says_so(experiment: str) -> None:
    uri = "models:/m-0123456789"
    with pytest.raises(mka.UserError, match=rf"{uri} does not answer .*m-0123456789"):
        predict_in_new_process(uri, np.zeros((1, 2)))
