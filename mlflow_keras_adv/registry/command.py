"""Converts the options of `mlflow-keras-adv promote` to samples and gates."""

from collections.abc import Sequence

from mlflow import MlflowClient

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry import gates as ready_made
from mlflow_keras_adv.registry.gates import Gate
from mlflow_keras_adv.registry.promotion import Promotion, promote
from mlflow_keras_adv.registry.rights import READ_EXPERIMENT, asking
from mlflow_keras_adv.registry.samples import Measure, read_samples
from mlflow_keras_adv.tracking.directions import AskedMode


def promotion_of(
    name: str,
    candidate: str,
    *,
    measure: Measure,
    dry_run: bool,
    data: str,
    dataset: str,
    digest: str,
    experiment: str | None,
    floors: Sequence[str],
    ceilings: Sequence[str],
    monitor: str | None,
    margin: float,
    relative: bool,
    mode: AskedMode,
    confidence: float | None,
    slices: Sequence[str],
    min_agreement: float | None,
    max_difference: float | None,
    max_size_bytes: int | None,
    max_latency_ratio: float | None,
    max_flops: float | None,
    same_dataset: bool,
    reason: str,
) -> Promotion:
    """Calls `promote` with the options of the command; see `mlflow-keras-adv promote --help`.

    Raises:
        UserError: An invalid value, or as `promote`.
    """
    samples = read_samples(data, name=dataset, digest=digest, slices=slices)
    try:
        gates: list[Gate] = [ready_made.floor(*_limit("--min", text)) for text in floors]
        gates += [ready_made.ceiling(*_limit("--max", text)) for text in ceilings]
        worse = ready_made.non_inferiority(
            monitor, margin, relative=relative, mode=mode, confidence=confidence
        )
        # Without labels nothing is scored, and size, latency and serving may still decide.
        if monitor is not None or samples.y is not None:
            gates += [worse]
        gates += [ready_made.per_slice(worse, column) for column in slices]
        if min_agreement is not None:
            gates += [ready_made.agreement(min_agreement)]
        if max_difference is not None:
            gates += [ready_made.difference(max_difference)]
        if max_size_bytes is not None:
            gates += [ready_made.budget(max_size_bytes=max_size_bytes)]
        if max_latency_ratio is not None:
            gates += [ready_made.budget(max_latency_ratio=max_latency_ratio)]
        if max_flops is not None:
            gates += [ready_made.budget(max_flops=max_flops)]
        if same_dataset:
            gates += [ready_made.same_dataset()]
        return promote(
            name,
            candidate,
            data=samples,
            gates=[*gates, ready_made.loads_and_serves()],
            measure=measure,
            dry_run=dry_run,
            reason=reason,
            experiment_id=None if experiment is None else _experiment_id(experiment),
            monitor=monitor or "accuracy",
            mode=mode,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _limit(option: str, text: str) -> tuple[str, float]:
    metric, _, number = text.rpartition("=")
    try:
        if metric:
            return metric, float(number)
    except ValueError:
        pass
    raise UserError(f"{option}: got {text!r}, expected METRIC=NUMBER, as accuracy=0.9.")


def _experiment_id(name: str) -> str:
    with asking(f"The experiment {name!r} cannot be read", READ_EXPERIMENT):
        found = MlflowClient().get_experiment_by_name(name)
    if found is None:
        raise UserError(f"There is no experiment {name!r}.")
    return str(found.experiment_id)
