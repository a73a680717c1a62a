"""Promotion: gates decide which model is served.

A registered model is a name with numbered versions; an alias names one of them, and loading
`models:/digits@champion` gets that one. Moving the alias is the deployment. So it moves only if the
candidate passes every gate, measured beside the champion on the same data and in one process, since
the numbers of old runs come from other machines and other days.

    floor, or ceiling        a least accuracy, a largest error
    non-inferiority          it may be worse than the champion by no more than a margin
    budget                   bytes, FLOPs, and the latency relative to the champion's
    same dataset             the examples are those that both models were recorded on
    loads and serves         a new process predicts for the model's own input example

Non-inferiority is for promoting a smaller model that need not be better; on few images one point of
accuracy may be chance, so the verdict has McNemar's p-value (Psychometrika 12, 1947). The score of
the best of many candidates on one test split is optimistic, because it was chosen by it: where that
matters, promote on images that no candidate was scored on (`-P data=fresh.npz`).

What to expect: the first version passes its floor, budget and loading; later ones are compared with
the champion. The evidence is on the run, `mlflow-keras-adv history digits` shows the history, and
`mlflow-keras-adv rollback digits` undoes a promotion. Half a minute on two cores, after

    mlflow run . -e compress --env-manager local
    mlflow run . -e promote --env-manager local -P max_size_bytes=50000 -P dry_run=true

and of a regression by its error, after `-e regression`:

    mlflow run . -e promote --env-manager local -P model=diabetes -P data=diabetes \
        -P predicts=numbers -P monitor=mae -P mode=min -P limit=60 -P margin=2
"""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.lessons import entry_point
from projects.data import Kind, load
from projects.parameters import Examples, Target


def main(
    model: str = "digits",
    candidate: str = "best-of-experiment",
    data: Examples = "digits",
    target: Target = "",
    inputs: Literal["any", "images", "features", "columns"] = "any",
    predicts: Literal["classes", "numbers"] = "classes",
    monitor: str = "accuracy",
    mode: Literal["max", "min"] = "max",
    limit: float = 0.9,
    margin: NonNegativeFloat = 0.01,
    max_size_bytes: PositiveInt = 1_000_000,
    max_latency_ratio: PositiveFloat = 2.0,
    max_flops: NonNegativeFloat = 0,
    reason: str = "",
    dry_run: bool = False,
) -> None:
    """Measures a candidate beside the champion, and promotes it if every gate passes.

    Args:
        model: Name of the registered model; one for each environment, as prod.digits.
        candidate: models:/m-…, runs:/<run id>/<name>, models:/dev.digits@champion, or
            best-of-experiment: the best recorded value of the metric that passes the limit and the
            budget of bytes, of equals the smallest.
        inputs: What the model takes: images, features (one array of numbers), columns (one input
            for each column of a table), or any: the first of these that the data can be.
        predicts: What the labels are.
        monitor: What decides, on the test examples, as `final/…` has it: mae, auc, price/mae.
        mode: Whether it is better when it is higher (max) or lower (min).
        limit: What any champion needs: at least, or of a metric that is to be low at most.
        margin: By how much the candidate may be worse than the champion, in the metric's own unit.
        max_size_bytes: That the candidate's file may have.
        max_latency_ratio: Median latency of the candidate relative to the champion's.
        max_flops: FLOPs that a forward pass of one sample may take; 0 for no such gate.
        reason: The reason, kept in the history.
        dry_run: Measure and judge only; the registry stays as it is.
    """
    params = dict(locals())
    kinds: tuple[Kind, ...] = ("images", "features", "columns")
    rows = load(
        data, target=target, kinds=kinds if inputs == "any" else (inputs,), goals=(predicts,)
    )
    gates = [
        registry.floor(monitor, limit) if mode == "max" else registry.ceiling(monitor, limit),
        registry.non_inferiority(monitor, margin, mode=mode),
        registry.budget(max_size_bytes=max_size_bytes),
        registry.budget(max_latency_ratio=max_latency_ratio),
        *([registry.budget(max_flops=max_flops)] if max_flops else []),
        registry.same_dataset(),
        registry.loads_and_serves(),
    ]
    with mka.track(
        entry_point.run_name("promote"), params=params, tags={"technique": "promote"}
    ) as run:
        run.log_dataset(rows.dataset, context="test")
        done = mka.promote(
            model,
            candidate,
            data=registry.Samples(rows.x_test, rows.y_test, rows.name, rows.digest),
            gates=gates,
            dry_run=dry_run,
            reason=reason,
            monitor=monitor,
            mode=mode,
        )
        value = {
            role: each.metrics.get(monitor, float("nan"))
            for role, each in done.evidence.measured.items()
        }
        sign = 1 if mode == "max" else -1
        bound = {"at_least" if mode == "max" else "at_most": limit}
        text = f"{monitor} of the candidate on the test split"
        claims = [mka.Claim("metric", text, value["candidate"], **bound)]
        if "champion" in value:
            worse = sign * (value["champion"] - value["candidate"])
            text = f"{monitor} by which the candidate is worse than the champion"
            claims += [mka.Claim("worse", text, worse, at_most=margin)]
        said = mka.log_claims(*claims)
        run.describe(f"{done.sentence}\n\n{done.evidence.markdown()}\n\n{said}")
    print(f"{done}\n{said}")


if __name__ == "__main__":
    entry_point.run(main)
