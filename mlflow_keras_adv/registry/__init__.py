"""Promotion through gates: a candidate becomes the champion only if it passes all of them.

Example:
    ```python
    import mlflow_keras_adv as mka
    from mlflow_keras_adv import registry

    done = mka.promote(
        "digits",
        "models:/m-…",
        data=registry.Samples(x_test, y_test),
        gates=[registry.floor("accuracy", 0.9), registry.non_inferiority(margin=0.01)],
    )
    print(done)  # a line for each gate, and what became of it
    mka.load_model("models:/digits@champion")
    ```
"""

from mlflow_keras_adv.keywords import answers_keywords
from mlflow_keras_adv.registry.audit import Entry, history
from mlflow_keras_adv.registry.gates import (
    Gate,
    Verdict,
    agreement,
    budget,
    ceiling,
    difference,
    floor,
    loads_and_serves,
    non_inferiority,
    per_slice,
    same_dataset,
)
from mlflow_keras_adv.registry.promotion import Promotion, promote, rollback
from mlflow_keras_adv.registry.registering import register
from mlflow_keras_adv.registry.samples import Measure, Measurements, Samples, read_samples

__all__ = [
    "Entry",
    "Gate",
    "Measure",
    "Measurements",
    "Promotion",
    "Samples",
    "Verdict",
    "agreement",
    "budget",
    "ceiling",
    "difference",
    "floor",
    "history",
    "loads_and_serves",
    "non_inferiority",
    "per_slice",
    "promote",
    "read_samples",
    "register",
    "rollback",
    "same_dataset",
]

for _name in __all__:
    globals()[_name] = answers_keywords(globals()[_name])
