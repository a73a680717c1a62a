"""Measures candidate and champion side by side, judges them, and logs the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry.candidates import Model, download
from mlflow_keras_adv.registry.evidence import Evidence
from mlflow_keras_adv.registry.gates import Gate, judge
from mlflow_keras_adv.registry.rights import EDIT_EXPERIMENT, who
from mlflow_keras_adv.registry.samples import Measure, Measurements, Samples
from mlflow_keras_adv.tracking.run import Run

EVIDENCE = "promotion/evidence"

_EVIDENCE_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Contest:
    """The models to compare.

    Attributes:
        name: Name of the registered model.
        model: The candidate.
        folder: The folder to which it was downloaded.
        sha256: sha256 of its files.
        version: Its version; empty in a dry run.
        champion: The champion; None if there is none.
        champion_version: Its version; empty if there is none.
    """

    name: str
    model: Model
    folder: Path
    sha256: str
    version: str
    champion: Model | None
    champion_version: str


def weigh(
    contest: Contest, samples: Samples, gates: Sequence[Gate], measure: Measure, reason: str
) -> Evidence:
    """Measures both models on the same samples, and calls the gates.

    Gates that compare fail if the champion cannot be measured; gates that need a number fail if the
    candidate cannot be measured.

    Raises:
        ValueError: `measure` does not return one measurement for each model.
    """
    folders, broken = [contest.folder], ""
    if contest.champion is not None:
        try:
            folders.append(download(contest.champion)[0])
        except UserError as error:
            broken = str(error)
    results = list(measure(folders, samples))
    if len(results) != len(folders):
        raise ValueError(f"measure returned {len(results)} measurements for {len(folders)} models.")
    if broken:
        results.append(Measurements(problem=broken))
    models = {"candidate": contest.model}
    if contest.champion is not None:
        models["champion"] = contest.champion
    measured = {
        role: replace(result, dataset=samples.dataset, recorded_on=each.recorded_on)
        for (role, each), result in zip(models.items(), results, strict=True)
    }
    facts = {role: {"uri": each.uri, "run": each.run_id} for role, each in models.items()}
    facts["candidate"]["sha256"] = contest.sha256
    return Evidence(
        name=contest.name,
        candidate=contest.model.uri,
        version=contest.version,
        champion=contest.champion_version,
        samples=samples,
        measured=measured,
        facts=facts,
        verdicts=[judge(gate, measured["candidate"], measured.get("champion")) for gate in gates],
        reason=reason,
        who=who(),
        when=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )


def put_on_record(run: Run, evidence: Evidence, model: Model) -> None:
    """Logs the evidence to a run, and waits until it is in the store.

    The candidate's numbers are `final/…`, the champion's `champion/…`, their comparison
    `versus_champion/…`. For each group of samples the deciding metric is logged as
    `final/slice/<column>/<value>/<metric>`.

    Args:
        run: The run.
        evidence: The evidence.
        model: The candidate. Its numbers are linked to it, unless this is a dry run.

    Raises:
        UserError: The store refuses it.
    """
    run.log_dict(evidence.plain(), f"{EVIDENCE}.json")
    run.log_text(evidence.page(), f"{EVIDENCE}.html")
    linked = model.logged.model_id if evidence.version and model.logged else None
    for role, prefix in (("candidate", "final"), ("champion", "champion")):
        if role in evidence.measured:
            metrics = evidence.measured[role].metrics
            run.log_metrics(
                {f"{prefix}/{key}": value for key, value in metrics.items()}
                | _of_slices(prefix, evidence.measured[role]),
                step=0,
                model_id=linked if role == "candidate" else None,
                dataset=evidence.samples.dataset,
            )
    common = evidence.measured["candidate"].beside if "candidate" in evidence.measured else {}
    run.log_metrics({f"versus_champion/{key}": value for key, value in common.items()}, step=0)
    run.set_tags({"registered_model": evidence.name, "promotion.gates": evidence.summary})
    if not run.flush(_EVIDENCE_SECONDS):
        raise UserError(
            f"The evidence is not in the store after {_EVIDENCE_SECONDS:.0f} s: the server is away "
            f"or this login lacks {EDIT_EXPERIMENT}. Nothing was promoted; promote again later."
        )


def _of_slices(prefix: str, measured: Measurements) -> dict[str, float]:
    """The deciding metric of each group of samples."""
    found = {}
    for name, each in measured.slices.items():
        column, _, value = name.partition("=")
        if each.deciding:
            key = f"{prefix}/slice/{column}/{value}/{each.deciding}"
            found[key] = each.metrics[each.deciding]
    return found
