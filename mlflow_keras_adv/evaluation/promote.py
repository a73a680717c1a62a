"""promote(): the registry's promotion, of Keras models and `.tflite` files."""

from collections.abc import Sequence
from typing import Any

from mlflow_keras_adv.evaluation.measure_models import measure_models
from mlflow_keras_adv.registry.gates import Gate
from mlflow_keras_adv.registry.promotion import Promotion
from mlflow_keras_adv.registry.promotion import promote as promote_measured
from mlflow_keras_adv.registry.samples import Measure, Samples
from mlflow_keras_adv.tracking.directions import AskedMode


def promote(
    name: str,
    candidate: str,
    *,
    data: Samples | tuple[Any, Any],
    gates: Sequence[Gate],
    measure: Measure = measure_models,
    dry_run: bool = False,
    reason: str = "",
    experiment_id: str | None = None,
    monitor: str = "accuracy",
    mode: AskedMode = "auto",
) -> Promotion:
    """Measures a candidate beside the champion, and makes it the champion if all gates pass.

    The same as `registry.promote`, which says more, for Keras models and `.tflite` files.

    Example:
        ```python
        mka.promote(
            "prices",
            info.model_uri,
            data=(x_test, y_test),
            gates=[registry.ceiling("mse", 50.0), registry.loads_and_serves()],
        )
        ```

    Args:
        name: The registered model.
        candidate: Address of the model, or `best-of-experiment`.
        data: Samples, or x and y alone.
        gates: Conditions for the candidate; see `registry.gates`.
        measure: A function that measures models.
        dry_run: Measure and judge, and change nothing in the registry.
        reason: The reason for the promotion, at most 2000 characters.
        experiment_id: The experiment of `best-of-experiment`.
        monitor: The metric that decides for `best-of-experiment`.
        mode: Whether that is better when it is lower ("min") or higher ("max"); "auto": as recorded
            by the runs, or by its name.

    Returns:
        The outcome. A refusal is a result, not an error.

    Raises:
        UserError: As `registry.promote`.
        ValueError: As `registry.promote`.
        TypeError: As `registry.promote`.
    """
    return promote_measured(
        name,
        candidate,
        data=data,
        gates=gates,
        measure=measure,
        dry_run=dry_run,
        reason=reason,
        experiment_id=experiment_id,
        monitor=monitor,
        mode=mode,
    )
