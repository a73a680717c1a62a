"""Runs and experiments that are begun while their store is away: they stand on this machine."""

from collections.abc import Mapping

from mlflow.entities import Experiment, LifecycleStage, Run

from mlflow_keras_adv.compat.mlflow import tracking_store_of, with_changes
from mlflow_keras_adv.durable.runs import Place
from mlflow_keras_adv.tracking import offline
from mlflow_keras_adv.tracking.paths import offline_artifacts, offline_uri

# The ids of experiments that the store has not been asked for begin so.
_PREFIX = "offline-"


class OfflineRuns:
    """The offline store of this machine, as far as it holds what is meant for one other store.

    Args:
        target: The plain tracking URI of the other.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._place: Place | None = None

    @property
    def place(self) -> Place:
        """The offline store, which is made if there is none."""
        if self._place is None:
            offline.offline_client()
            store = tracking_store_of(offline_uri(), offline_artifacts().as_uri())
            self._place = Place(store, offline_uri())
        return self._place

    def create_run(
        self, experiment_id: str, start_time: int | None, tags: Mapping[str, str], name: str | None
    ) -> Run:
        """Creates a run, for the experiment of an id of either store."""
        here = self.experiment_of(experiment_id)
        return offline.new_run(self.place.client, self._target, here, name, tags, start_time)

    def experiment_of(self, experiment_id: str) -> str:
        """The id in the offline store of an experiment of either."""
        if is_offline_id(experiment_id):
            return experiment_id.removeprefix(_PREFIX)
        return offline.open_experiment(self.place.client, self._target, "", experiment_id)

    def experiment_named(self, name: str) -> Experiment:
        """A stand-in for the experiment of a name, which the store is asked for later."""
        here = offline.open_experiment(self.place.client, self._target, name, None)
        return _stand_in(f"{_PREFIX}{here}", name)

    def experiment(self, experiment_id: str) -> Experiment:
        """A stand-in for the experiment of an id."""
        if not is_offline_id(experiment_id):
            return _stand_in(experiment_id, f"experiment {experiment_id}")
        return _stand_in(experiment_id, self.name_of(experiment_id))

    def name_of(self, experiment_id: str) -> str:
        """The name of the experiment for which an offline id stands."""
        here = self.place.client.get_experiment(experiment_id.removeprefix(_PREFIX))
        return str(here.name)


def is_offline_id(experiment_id: object) -> bool:
    """Whether an experiment's id is that of a stand-in."""
    return isinstance(experiment_id, str) and experiment_id.startswith(_PREFIX)


def of_experiment(run: Run, experiment_id: str) -> Run:
    """An offline run as one of the experiment that it is meant for."""
    return Run(with_changes(run.info, experiment_id=experiment_id), run.data, run.inputs)


def _stand_in(experiment_id: str, name: str) -> Experiment:
    return Experiment(
        experiment_id=experiment_id,
        name=name,
        artifact_location=offline_artifacts().as_uri(),
        lifecycle_stage=LifecycleStage.ACTIVE,
    )
