"""promote and rollback: the champion of a registered model moves only through its gates."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from mlflow import MlflowClient

from mlflow_keras_adv.compat.mlflow import active_experiment_id
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError, expect
from mlflow_keras_adv.registry import audit
from mlflow_keras_adv.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    alias,
    alone,
    move_champion,
    number_of,
    set_alias,
)
from mlflow_keras_adv.registry.candidates import (
    BEST,
    best_of_experiment,
    download,
    model_of,
    resolve,
)
from mlflow_keras_adv.registry.evidence import Evidence
from mlflow_keras_adv.registry.gates import Gate
from mlflow_keras_adv.registry.registering import register_model, require_name
from mlflow_keras_adv.registry.rights import (
    EDIT_EXPERIMENT,
    EDIT_MODEL,
    asking,
    require_registry,
)
from mlflow_keras_adv.registry.samples import Measure, Samples
from mlflow_keras_adv.registry.weighing import EVIDENCE, Contest, put_on_record, weigh
from mlflow_keras_adv.tracking.directions import AskedMode
from mlflow_keras_adv.tracking.names import KeyTable
from mlflow_keras_adv.tracking.run import Run, current_run, track

_LONGEST_REASON = 2000


@dataclass(frozen=True, eq=False)
class Promotion:
    """The outcome of a promotion.

    Attributes:
        outcome: "promoted"; "refused": a gate failed; "lost": all passed, but somebody else moved
            the champion meanwhile; "passed": all passed, in a dry run.
        evidence: The measurements and verdicts on which it was decided.
        run_id: The run that holds the evidence; empty if a dry run had none.
        champion: The champion's version now; empty if there is none.
    """

    outcome: Literal["promoted", "refused", "lost", "passed"]
    evidence: Evidence
    run_id: str
    champion: str

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        name, version = self.evidence.name, self.evidence.version
        now = f"version {self.champion}" if self.champion else "none"
        return {
            "promoted": f"Promoted: {name}@{CHAMPION} is version {version} now.",
            "refused": f"Refused ({self.evidence.summary}): {name}@{CHAMPION} stays {now}.",
            "lost": (
                f"Not promoted: all gates passed, but somebody else has moved {name}@{CHAMPION} "
                f"meanwhile; it is {now}. Promote again, to compare with that one."
            ),
            "passed": f"Dry run: all gates passed, {name}@{CHAMPION} stays {now}.",
        }[self.outcome]

    def __str__(self) -> str:
        return "\n".join([*self.evidence.lines(), self.sentence])


@keeps_random_state()
def promote(
    name: str,
    candidate: str,
    *,
    data: Samples | tuple[Any, Any],
    gates: Sequence[Gate],
    measure: Measure,
    dry_run: bool = False,
    reason: str = "",
    experiment_id: str | None = None,
    monitor: str = "accuracy",
    mode: AskedMode = "auto",
) -> Promotion:
    """Measures a candidate beside the champion, and makes it the champion if all gates pass.

    `mka.promote` is the same with `measure_models` as its measure.

    The evidence goes to the run that is open, or to one of its own: `promotion/evidence.json` and
    `.html`. The candidate becomes a version with the alias `challenger` and a tag for each verdict;
    if it passes, `champion` moves to it and `previous_champion` to the former one. In both cases
    `history` gets an entry.

    Example:
        ```python
        def measure(folders, samples):  # a measure of one's own, beside what is measured anyway
            found = []
            for folder, each in zip(folders, mka.measure_models(folders, samples), strict=True):
                answers = mka.load_model(folder).predict(samples.x, verbose=0)[:, 0]
                own = {"within_10": float((abs(answers - samples.y) < 10).mean())}
                found.append(dataclasses.replace(each, metrics={**each.metrics, **own}))
            return found


        registry.promote(
            "prices",
            info.model_uri,
            data=registry.Samples(x_test, y_test),
            gates=[registry.floor("within_10", 0.8), registry.ceiling("mse", 50.0)],
            measure=measure,
        )
        ```

    Args:
        name: The registered model. The candidate may be a version of another one: that of the
            environment before, such as `dev.digits`.
        candidate: `models:/m-…`, `runs:/<run id>/<name>`, `models:/<name>/<version>`,
            `models:/<name>@<alias>`, or `best-of-experiment`: the model with the best recorded
            `final/<monitor>` on this dataset that passes the floors; the smallest of equal ones.
        data: Samples, or `(x, y)`.
        gates: Conditions for the candidate; see `registry.gates`.
        measure: A function that measures models, such as `mka.measure_models` for Keras models and
            `.tflite` files.
        dry_run: Measure and judge, and change nothing in the registry. Evidence is kept only if a
            run is open.
        reason: The reason, kept in the history; at most 2000 characters.
        experiment_id: The experiment of `best-of-experiment`; default: that of the open run, else
            the one that MLflow would use.
        monitor: The metric that decides for `best-of-experiment`.
        mode: Whether that is better when it is lower ("min") or higher ("max"); "auto": as recorded
            by the runs of the models, else by its name.

    Returns:
        The outcome. A refusal is a result, not an error.

    Raises:
        UserError: There is no such candidate, or it is the champion already; there are no samples;
            the store cannot be reached, or refuses a call for a missing right.
        ValueError: No gates, or a reason that is too long.
        TypeError: The candidate is no address of a model, or the gates are no list.
    """
    require_name(name)
    expect("candidate", candidate, str, "the address of a logged model, a str: info.model_uri")
    expect("gates", gates, Sequence, "a list of gates: [registry.floor('accuracy', 0.9)]")
    if not gates:
        raise ValueError("promote needs gates, at least a floor; received none.")
    _check_reason(reason)
    samples = data if isinstance(data, Samples) else Samples(*data)
    require_registry()
    champion = alias(name, CHAMPION)
    reigning = None if champion is None else model_of(champion)
    if candidate == BEST:
        model = best_of_experiment(_experiment(experiment_id), samples.digest, gates, monitor, mode)
    else:
        model = resolve(candidate)
    if reigning is not None and model.uri == reigning.uri:
        raise UserError(
            f"{model.uri} is the champion of {name} already, version {number_of(champion)}. "
            "Give another candidate."
        )
    folder, sha256 = download(model)
    with ExitStack() as stack:
        version = ""
        run = current_run() if dry_run else _open_run(stack)
        if not dry_run:
            version = number_of(register_model(name, model, sha256))
            set_alias(name, CHALLENGER, version)
        contest = Contest(name, model, folder, sha256, version, reigning, number_of(champion))
        evidence = weigh(contest, samples, gates, measure, reason)
        if run is not None:
            put_on_record(run, evidence, model)
        done = _dry(evidence, run) if dry_run or run is None else _act(evidence, run)
        if run is not None:
            run.set_tags({"promotion": done.outcome})
            run.describe(f"{done.sentence}\n\n{evidence.markdown()}")
        return done


@keeps_random_state()
def rollback(name: str, *, reason: str = "") -> audit.Entry:
    """Makes the previous champion the champion again.

    A second rollback goes back to the champion before that one, and never forward to the one that
    was rolled back.

    Args:
        name: Name of the registered model.
        reason: The reason, kept in the history; at most 2000 characters.

    Returns:
        The entry of the history.

    Raises:
        UserError: There is no previous champion, it was changed since it was registered, another
            process is moving the champion, or the registry refuses.
        ValueError: A reason that is too long.
    """
    require_name(name)
    _check_reason(reason)
    require_registry()
    old, previous = number_of(alias(name, CHAMPION)), alias(name, PREVIOUS)
    new = number_of(previous)
    if previous is None or old == new:
        raise UserError(
            f"The registered model {name!r} has no previous champion to go back to. Promote a "
            "model instead."
        )
    model = model_of(previous)
    download(model)  # checks that it is still what was registered
    with alone(name):
        now = move_champion(name, new, before=old, previous=_champion_before(name, new))
        if now != new:
            raise UserError(
                f"Somebody else has moved {name}@{CHAMPION} meanwhile: it is version "
                f"{now or 'none'}. See `mlflow-keras-adv history {name}`."
            )
        moved: dict[str, str] = {"version": new, "before": old, "model": model.uri}
        return audit.append(name, "rolled back", reason=reason, **moved)


def _check_reason(reason: str) -> None:
    if len(reason) > _LONGEST_REASON:
        limit = f"expected at most {_LONGEST_REASON}"
        raise ValueError(f"reason: received {len(reason)} characters, {limit}.")


def _experiment(experiment_id: str | None) -> str:
    run = current_run()
    return str(experiment_id or (run.experiment_id if run else active_experiment_id()))


def _open_run(stack: ExitStack) -> Run:
    with asking("The run of the promotion cannot be opened", EDIT_EXPERIMENT):
        run = stack.enter_context(track("promote", log_system_metrics=False))
    require_registry()  # the server may have gone in between, and the run be offline
    return run


def _dry(evidence: Evidence, run: Run | None) -> Promotion:
    run_id = "" if run is None else run.run_id
    return Promotion(
        "passed" if evidence.passed else "refused", evidence, run_id, evidence.champion
    )


def _act(evidence: Evidence, run: Run) -> Promotion:
    """Tags the version, moves the aliases if all gates passed, and writes the history."""
    name, version, before = evidence.name, evidence.version, evidence.champion
    tags = {
        "gates": "passed" if evidence.passed else "failed",
        "gates.evidence": f"runs:/{run.run_id}/{EVIDENCE}.html",
        "gates.dataset": f"{evidence.samples.name} {evidence.samples.digest}",
    }
    keys = KeyTable("tags").of(f"gate.{each.gate}" for each in evidence.verdicts).keys
    for each in evidence.verdicts:
        verdict = f"{'pass' if each.passed else 'FAIL'}: {each.reason}"
        tags[keys[f"gate.{each.gate}"]] = verdict
    client = MlflowClient()
    with asking(f"{name} version {version} cannot be tagged", EDIT_MODEL):
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
    outcome: Literal["promoted", "refused", "lost"] = "refused"
    now = before
    with ExitStack() as stack:
        if evidence.passed:
            stack.enter_context(alone(name))
            now = move_champion(name, version, before=before, previous=before)
            outcome = "promoted" if now == version else "lost"
        audit.append(
            name,
            outcome,
            version=version,
            before=before,
            reason=evidence.reason,
            gates=evidence.summary,
            model=evidence.candidate,
            run_id=run.run_id,
        )
    return Promotion(outcome, evidence, run.run_id, now)


def _champion_before(name: str, version: str) -> str:
    """The champion that a version replaced when it was promoted; the version itself if none."""
    for entry in reversed(audit.history(name)):
        if entry.what == "promoted" and entry.version == version:
            return entry.before or version
    return version
