"""Promotion: which model is served is a decision, and here it is made by gates.

A registered model is a name with numbered versions; an alias names one of them, and who loads
`models:/digits@champion` gets what it names now. Moving the alias is the deployment. So it moves
only if the candidate passes every gate, measured beside the champion on the same images, in one
process, now: numbers of old runs are of other machines and other days.

    floor                    an accuracy that no model may be below
    non-inferiority          it may be worse than the champion, but by no more than a margin
    budget                   bytes, and the latency in parts of the champion's
    same dataset             the images are those that both models were recorded on
    loads and serves         a fresh process answers the model's own input example

Non-inferiority is the trial to make where a smaller model is wanted and not a better one; on few
images one point of accuracy may be chance, so the verdict tells McNemar's p (Psychometrika 12,
1947). The best of many candidates on one test split is flattered by having been chosen: where it
matters, promote on images that no candidate was scored on (`-P data=fresh.npz`, and its name).

What to expect: the first version passes on its floor, budget and loading; from the second on the
champion is the measure. The evidence is on the run, the trail in `mlflow-keras-adv history digits`,
and `mlflow-keras-adv rollback digits` takes it back. Half a minute on two cores, after

    mlflow run . -e compress --env-manager local
    mlflow run . -e promote --env-manager local -P max_size_bytes=50000 -P dry_run=true
"""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point, registry
from projects.data import load


def main(
    model: str = "digits",
    candidate: str = "best-of-experiment",
    data: str = "digits",
    target: str = "",
    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.9,
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.01,
    max_size_bytes: PositiveInt = 1_000_000,
    max_latency_ratio: PositiveFloat = 2.0,
    reason: str = "",
    dry_run: bool = False,
) -> None:
    """Measures a candidate beside the champion, and promotes it if every gate passes.

    Args:
        model: Name of the registered model; one for each environment, as prod.digits.
        candidate: models:/m-…, runs:/<run id>/<name>, models:/dev.digits@champion, or
            best-of-experiment: the highest recorded accuracy that passes the floor and the budget
            of bytes, of equals the smallest.
        data: digits, keras:mnist (or another of keras.datasets), breast_cancer, a folder of images,
            or the path of an .npz, .csv or .parquet file.
        target: Column to tell of a .csv or .parquet file.
        min_accuracy: On the test images, that any champion needs.
        max_accuracy_drop: On the test images, that the candidate may lose against the champion.
        max_size_bytes: That the candidate's file may have.
        max_latency_ratio: Median latency of the candidate in parts of the champion's.
        reason: Why, for the trail.
        dry_run: Measure and judge only; the registry stays as it is.
    """
    params = dict(locals())
    images = load(data, target=target, kinds=("images", "features", "columns"))
    gates = [
        registry.floor("accuracy", min_accuracy),
        registry.non_inferiority("accuracy", max_accuracy_drop),
        registry.budget(max_size_bytes=max_size_bytes),
        registry.budget(max_latency_ratio=max_latency_ratio),
        registry.same_dataset(),
        registry.loads_and_serves(),
    ]
    with mka.track("promote", params=params, tags={"technique": "promote"}) as run:
        run.log_dataset(images.dataset, context="test")
        done = registry.promote(
            model,
            candidate,
            data=registry.Samples(images.x_test, images.y_test, images.name, images.digest),
            gates=gates,
            measure=mka.measure_models,
            dry_run=dry_run,
            reason=reason,
        )
        accuracy = {
            role: each.metrics.get("accuracy", float("nan"))
            for role, each in done.evidence.measured.items()
        }
        claims = [
            mka.Claim(
                "accuracy",
                "test accuracy of the candidate",
                accuracy["candidate"],
                at_least=min_accuracy,
            )
        ]
        if "champion" in accuracy:
            lost = accuracy["champion"] - accuracy["candidate"]
            text = "test accuracy that the candidate loses against the champion"
            claims += [mka.Claim("accuracy_drop", text, lost, at_most=max_accuracy_drop)]
        said = mka.log_claims(run, *claims)
        run.describe(f"{done.sentence}\n\n{done.evidence.markdown()}\n\n{said}")
    print(f"{done}\n{said}")


if __name__ == "__main__":
    entry_point.run(main)
