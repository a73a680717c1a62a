"""What a finished `.tflite` file scores, weighs and takes, on record beside the file itself."""

from typing import Any

import numpy as np
import pandas as pd

from mlflow_keras_adv import litert
from mlflow_keras_adv.compression.file_footprint import file_footprint, weight_table
from mlflow_keras_adv.compression.runtime import LiteRTModel
from mlflow_keras_adv.measure import FinishedModel
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.tracking.values import Dataset


@keeps_random_state()
def log_finished_file(
    run: Run,
    content: bytes,
    x: Any,
    y: np.ndarray | None = None,
    *,
    name: str,
    dataset: Dataset | None = None,
    reference: Any = None,
    parent_model_id: str | None = None,
) -> FinishedModel:
    """Logs a `.tflite` file as a LoggedModel, with its `final/…` metrics on the test split.

    The metrics stand where those of `log_finished_model` stand, under the same names, so that a
    file lines up with the model that it was made of. Its weights are the table `weights.json`.

    Args:
        run: The run that made the file.
        content: The file.
        x: Test samples, shape [n, ...], or a list or dict of such arrays; two of them become the
            model's input example.
        y: Integer labels, shape [n]. Without them there is no `final/accuracy`.
        name: What to call the model.
        dataset: Name and digest of the data.
        reference: A Keras model or `.tflite` file of the same classes; `final/agreement` says how
            often both agree.
        parent_model_id: Id of the LoggedModel that this one comes from.
    """
    lineage = {} if parent_model_id is None else {"parent_model_id": parent_model_id}
    example = LiteRTModel(content).named(x)
    info = litert.log_model(
        content,
        name=name,
        run_id=run.run_id,
        input_example={key: np.asarray(array)[:2] for key, array in example.items()},
        tags={**lineage, "variant": name},
    )
    run.set_tags(lineage)
    final = file_footprint(content, x, y, reference=reference)
    named = {f"final/{key}": value for key, value in final.items()}
    run.log_metrics(named, step=0, model_id=info.model_id, dataset=dataset)
    run.log_table(pd.DataFrame(weight_table(content)), "weights.json")
    return FinishedModel(info, final)
