"""Carries whole runs from a store of this machine to another, each exactly once.

MLflow itself drops a metric value or a dataset that it holds already. Runs, models and versions
get a tag with the uid of what they were made from, and are looked for by it before they are
created; params and outputs are sent if the target does not show them. So a call may break off
anywhere, or lose an answer, and the next one finishes its work.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, LoggedModel, Run, RunStatus, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_USER

from mlflow_keras_adv.tracking.carry_models import (
    all_models,
    carry_versions,
    fill_model,
    open_model,
)
from mlflow_keras_adv.tracking.carry_target import (
    CONTINUES_TAG,
    Carried,
    RejectedError,
    Target,
)
from mlflow_keras_adv.tracking.carry_values import (
    Links,
    fill_inputs,
    fill_metrics,
    fill_outputs,
    fill_params_and_tags,
    links_of,
)
from mlflow_keras_adv.tracking.names import UID_TAG

# Of an experiment in the source: which one of the target its runs belong to.
EXPERIMENT_ID_TAG = "mlflow_keras_adv.experiment_id"
EXPERIMENT_NAME_TAG = "mlflow_keras_adv.experiment_name"


def carry(
    source: MlflowClient,
    target: MlflowClient,
    run_ids: Sequence[str],
    ids: MutableMapping[str, str],
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Carried]:
    """Carries runs, with their models and registered versions, to another store.

    Nothing happens before the first result is asked for. All runs are created before the first of
    them is filled, parents first. The status of a run is written after everything else of it, and
    before its versions are registered; a run that is RUNNING in the source stays so. A run with
    the tag `mlflow_keras_adv.continues` is merged into that run of the target. Ids in tags, in
    MLmodel files and in the sources of versions become those of the target.

    Not carried: traces, models without a run, and the times at which models and versions were
    created.

    Args:
        source: A store whose artifacts lie in folders of this machine.
        target: Any store.
        run_ids: Runs of the source. The parent of a run, and the runs whose models it measures,
            belong in the same call, or in one before.
        ids: Id in the target by id in the source, of runs, models and versions. Changed at once
            when something was created; keep it for the next call.
        progress: Called after each call to the target, answered or not.

    Yields:
        One result for each run, as soon as all of it is in the target or refused by name.

    Raises:
        Exception: From a call to the target that may succeed later: an error of the connection or
            the server, a missing right. Call again then, with the runs that are left.
    """
    models = all_models(source)
    by_run: dict[str, list[LoggedModel]] = defaultdict(list)
    for model in models:
        by_run[str(model.source_run_id)].append(model)
    carrier = _Carrier(source, Target(target, ids, progress), by_run, links_of(models))
    runs = _parents_first([source.get_run(run_id) for run_id in run_ids])
    for run, carried in [(run, carrier.open(run)) for run in runs]:
        if carried.target_run_id is not None:
            carrier.fill(run, carried)
        yield carried


class _Carrier:
    """Carries run by run.

    Args:
        source: Where they are.
        target: Where they go.
        models: Models of the source by the run that made them.
        links: For each run, which of its values are those of a model too.
    """

    def __init__(
        self,
        source: MlflowClient,
        target: Target,
        models: dict[str, list[LoggedModel]],
        links: dict[str, Links],
    ) -> None:
        self._source = source
        self._target = target
        self._models = models
        self._links = links
        self._experiments: dict[str, str] = {}

    def open(self, run: Run) -> Carried:
        """Finds or creates a run and its models, with hardly more than their names."""
        carried = Carried(run.info.run_id)
        try:
            there = self._open_run(run)
        except RejectedError as error:
            carried.refuse(f"run {run.info.run_name}", error)
            return carried
        self._target.ids[run.info.run_id] = carried.target_run_id = there.info.run_id
        for model in self._models[run.info.run_id]:
            try:
                open_model(self._target, model, there.info.experiment_id)
            except RejectedError as error:
                carried.refuse(f"model {model.name}", error)
        return carried

    def fill(self, run: Run, carried: Carried) -> None:
        """Brings all that a run holds, then its status, then its registered versions."""
        target, run_id = self._target, str(carried.target_run_id)
        try:
            there = target.active_run(run_id)
            target.places.clear()
            target.places[run.info.artifact_uri] = there.info.artifact_uri
            for model in self._models[run.info.run_id]:
                self._fill_model(model, carried)
            target.upload(run.info.artifact_uri, target.client.log_artifact, run_id, carried)
            fill_params_and_tags(target, run, there, carried)
            links = self._links.get(run.info.run_id, {})
            fill_metrics(self._source, target, run, there, links, carried)
            fill_inputs(target, run, there, carried)
            fill_outputs(target, run, there, carried)
            if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
                target.ask(target.client.set_terminated, run_id, run.info.status, run.info.end_time)
        except RejectedError as error:
            carried.refuse(f"run {run.info.run_name}", error)
            carried.target_run_id = None
            return
        carry_versions(self._source, target, run.info.run_id, carried)

    def _fill_model(self, model: LoggedModel, carried: Carried) -> None:
        if model.model_id not in self._target.ids:
            return
        try:
            fill_model(self._target, model, carried)
        except RejectedError as error:
            carried.refuse(f"model {model.name}", error)

    def _open_run(self, run: Run) -> Run:
        target, client, tags = self._target, self._target.client, run.data.tags
        known = target.ids.get(run.info.run_id)
        if known is None and CONTINUES_TAG in tags:
            known = target.ids.get(tags[CONTINUES_TAG], tags[CONTINUES_TAG])
        if known is not None:
            return target.active_run(known)
        experiment_id = self._experiment(run.info.experiment_id)
        uid = tags.get(UID_TAG, run.info.run_id)

        def find() -> list[Run]:
            found = target.ask(
                client.search_runs,
                [experiment_id],
                filter_string=f"tags.`{UID_TAG}` = '{uid}'",
                run_view_type=ViewType.ALL,  # one that was deleted there is not created again
            )
            active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
            return sorted(active or found[:1], key=lambda run: run.info.run_id)

        def create() -> None:
            kept = (MLFLOW_PARENT_RUN_ID, MLFLOW_USER)
            first = {key: target.translate(tags[key]) for key in kept if key in tags}
            target.ask(
                client.create_run,
                experiment_id,
                start_time=run.info.start_time,
                tags={**first, UID_TAG: uid},
                run_name=run.info.run_name,
            )

        there = target.find_or_create(
            find, create, lambda twin: target.ask(client.delete_run, twin.info.run_id)
        )
        return target.active_run(there.info.run_id)

    def _experiment(self, experiment_id: str) -> str:
        if experiment_id not in self._experiments:
            here = self._source.get_experiment(experiment_id)
            self._experiments[experiment_id] = here.tags.get(
                EXPERIMENT_ID_TAG
            ) or self._experiment_by_name(here)
        return self._experiments[experiment_id]

    def _experiment_by_name(self, here: Experiment) -> str:
        client, name = self._target.client, here.tags.get(EXPERIMENT_NAME_TAG, here.name)
        there = self._target.ask(client.get_experiment_by_name, name)
        if there is None:
            tags = {key: text for key, text in here.tags.items() if key != EXPERIMENT_NAME_TAG}
            try:
                return self._target.ask(client.create_experiment, name, tags=tags)
            except RejectedError:  # somebody else may have been faster
                there = self._target.ask(client.get_experiment_by_name, name)
                if there is None:
                    raise
        return there.experiment_id


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    """Runs by their start, each after its parent and after the run that it continues."""
    waiting = {run.info.run_id: run for run in sorted(runs, key=lambda run: run.info.start_time)}
    ordered: list[Run] = []

    def place(run: Run) -> None:
        for tag in (MLFLOW_PARENT_RUN_ID, CONTINUES_TAG):
            if (before := waiting.pop(run.data.tags.get(tag, ""), None)) is not None:
                place(before)
        ordered.append(run)

    while waiting:
        place(waiting.pop(next(iter(waiting))))
    return ordered
