"""RunWriter: the only code that writes to a run, from a thread of its own.

MLflow's own asynchronous logging has one queue per store, which the end of any run shuts down, and
it drops a batch that fails. Here each run has its queue and its thread, and what the store cannot
take for now is kept and sent again.
"""

import functools
import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_keras_adv.compat.mlflow import asking_once
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.tracking.aside import Aside
from mlflow_keras_adv.tracking.journal import About, Journal, peek
from mlflow_keras_adv.tracking.journal_delivery import JournalDelivery
from mlflow_keras_adv.tracking.logged_models import UID_PREFIX
from mlflow_keras_adv.tracking.names import KINDS, KeyTable, flatten
from mlflow_keras_adv.tracking.outbox import Outbox
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.pending import Pending, Receipt
from mlflow_keras_adv.tracking.records import (
    Artifact,
    Deletion,
    End,
    Model,
    Params,
    Record,
    Refusal,
    Tags,
    decode,
)
from mlflow_keras_adv.tracking.staging import StagingClient
from mlflow_keras_adv.tracking.store import PROBE_SECONDS, normalized_uri
from mlflow_keras_adv.tracking.values import Dataset, points_from, series_from, table_of
from mlflow_keras_adv.tracking.verdict import may_succeed_later

_logger = logging.getLogger(__name__)

# By the id of a run, the writer that all of this process use.
open_writers: "WeakValueDictionary[str, RunWriter]" = WeakValueDictionary()


class RunWriter:
    """Delivers what is handed in, in order; the caller never waits for the store.

    What is handed in is written to a journal on disk first, and stands there until the store has
    accepted it. What cannot be recorded (an infinity, what is not a number, what the store rejects)
    is refused by name, with one warning for each. What the store cannot take for now is retried.

    Names that MLflow does not accept are made fit (`names.metric_key`); those that would become one
    stay apart, with one warning, and the tags `names.metrics`, `names.params` and `names.tags` keep
    the name of each key that is not one itself.

    Args:
        run_id: The run to write to.
        client: Its store.
        left: A journal of this run that an earlier process has left; it is delivered first.
        in_use: Whether the run is open in this process by other means than `will_end_run`: idle
            threads stay then, and if the process dies, the run has ended.
        key_tables: If a run is taken up again: which name has which key, by kind.
        goes_on: Whether another process goes on with the run: an end in the journal is none.

    Attributes:
        is_quiet: Whether it drops what it is handed; see `quiet`.
    """

    is_quiet = False

    def __init__(
        self,
        run_id: str,
        client: MlflowClient,
        left: Journal | None = None,
        in_use: Callable[[], bool] = lambda: False,
        *,
        key_tables: Mapping[str, KeyTable] | None = None,
        goes_on: bool = False,
    ) -> None:
        self.run_id = run_id
        self._keys = {kind: KeyTable(kind) for kind in KINDS} | dict(key_tables or {})
        self._client = client
        self._in_use = in_use
        self._ends_run_in: int | None = None  # id of a process: a forked child ends nothing
        self._others_end_run = False
        self._exit: SystemExit | None = None
        self._pending = Pending(self._new_journal, left)
        self._aside: Aside | None = None
        put_off_before = left is not None and left.about.aside
        self._delivery = JournalDelivery(
            run_id, client, self._pending, aside=None if put_off_before else self._new_aside
        )
        self._delivery.goes_on_elsewhere = goes_on
        self._outbox = Outbox(run_id, self._pending, self._delivery, in_use)
        lost = {} if left is None else left.notes.take_lost()
        reason = "the disk of the journal was full"
        self._refuse(Refusal(name, reason, points) for name, points in lost.items())

    @property
    def tracking_uri(self) -> str:
        """The store that the run is in."""
        return self._client.tracking_uri

    @property
    def receipt(self) -> Receipt:
        """What became of the metric values that were handed in so far."""
        receipt, aside = self._pending.receipt(), self._aside
        return receipt if aside is None else receipt + aside.receipt

    @property
    def puts_off(self) -> bool:
        """Whether files of the run wait for their store."""
        return self._aside is not None and not self._aside.is_empty()

    def can_upload(self) -> bool:
        """Asks the store of the artifacts, once, whether it answers."""
        try:
            with asking_once(PROBE_SECONDS):
                self._delivery.ask_artifact_store()
        except Exception as error:
            return not may_succeed_later(error)
        return True

    @property
    def refused(self) -> Counter[str]:
        """How often each name was refused so far."""
        return self.receipt.refused_names

    @property
    def has_ended(self) -> bool:
        """Whether the run's final status was handed in."""
        return self._pending.ended

    def will_end_run(self) -> None:
        """Says in the journal that this process will end the run.

        If it dies without a word, whoever finds the journal ends the run as KILLED.
        """
        self._ends_run_in = os.getpid()
        self._outbox.keep_journal()
        self._outbox.hold()

    def will_not_end_run(self) -> None:
        """Says in the journal that another process ends the run, whatever becomes of this one."""
        self._others_end_run = True

    def hold(self) -> Callable[..., None]:
        """Has the writer's threads at work until then, for a training whose run others have opened.

        At the end of the process no thread can be started: what is handed in there could not be
        delivered by this process.

        Returns:
            A function to call when the training has ended, with what it raised, if anything: a
            process that ends by `SystemExit` does not tell, and a run that nobody has ended by then
            is ended by what its last training raised.
        """
        let_go = self._outbox.hold()

        def release(error: BaseException | None = None) -> None:
            let_go()
            # A copy: the original holds the frames of the training, and so the model.
            self._exit = SystemExit(error.code) if isinstance(error, SystemExit) else None

        return release

    @property
    def was_used(self) -> bool:
        """Whether anything was handed in."""
        return self._outbox.used

    @property
    def exited_by(self) -> SystemExit | None:
        """What the last training that held this raised, if that was to end the process."""
        return self._exit

    @property
    def is_failing(self) -> bool:
        """Whether the store takes nothing for now."""
        return self._delivery.retry.failing_for() > 0

    def hand_in(self, record: Record) -> None:
        """Hands in a record as it is: nothing of it is checked or renamed."""
        self._outbox.put(record)

    def folder(self) -> Path | None:
        """The journal, where copies of what is handed in belong; None if it cannot be written."""
        return self._pending.open()

    def waiting(self) -> list[Record]:
        """What stands in the journal, oldest first; a part of it may be in the store by now."""
        aside = None if self._aside is None else self._aside.folder
        folders = [each for each in (self._pending.folder, aside) if each is not None]
        return [decode(each, folder) for folder in folders for each in peek(folder)[1]]

    def log_metrics(
        self,
        values: Mapping[str, Any],
        *,
        step: int = 0,
        model_id: str | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        """Hands in values of this moment.

        Args:
            values: Real numbers by name. NaN is recorded, an infinity is refused. Several numbers
                in one value (an array, a tensor, a list) become a curve each: `f1/0`, `f1/1`, ….
            step: Training batches consumed so far; 0 for numbers about the finished model.
            model_id: LoggedModel that the values belong to.
            dataset: Data that the values were measured on.
        """
        points, refusals = points_from(
            values,
            step=step,
            model_id=model_id,
            dataset=dataset,
            keys_of=functools.partial(self._keys_of, "metrics"),
        )
        self._refuse(refusals)
        if points:
            self._outbox.put(points)

    def log_series(
        self, columns: Mapping[str, "np.ndarray[Any, Any]"], *, steps: Any, timestamps_ms: Any
    ) -> None:
        """Hands in values of many moments at once: arrays are copied, no object made per value.

        Args:
            columns: Per name an array of real numbers of shape `[rows]`; where it is masked there
                is no value. NaN is recorded, an infinity is refused.
            steps: Training batches consumed, integers of shape `[rows]`.
            timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.

        Raises:
            ValueError: If an array is not one-dimensional, or they differ in length.
        """
        series, refusals = series_from(
            columns, steps, timestamps_ms, keys_of=functools.partial(self._keys_of, "metrics")
        )
        self._refuse(refusals)
        self._outbox.put(series)

    def log_params(self, values: Mapping[str, object]) -> None:
        """Hands in a configuration, nested or flat, as dotted params (see `names.flatten`).

        One that the run holds with an equal value is skipped. MLflow cannot change a param, so a
        different value becomes the tag `param.<key>.changed`. If a text has more than
        6000 characters, the param holds its head and the artifact `params/<key>.txt` the whole.

        Args:
            values: Mappings in mappings, sequences, plain values, NumPy arrays.
        """
        if values:
            flat = flatten(values)
            keys = self._keys_of("params", flat)
            self._outbox.put(Params({keys[name]: value for name, value in flat.items()}))

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Hands in tags.

        Args:
            values: Texts by name; of more than 8000 characters `tags/<key>.txt` holds the whole.
        """
        if values:
            keys = self._keys_of("tags", values)
            self._outbox.put(Tags({keys[name]: str(value) for name, value in values.items()}))

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Hands in a copy of a file or a folder.

        Args:
            path: The file or folder; it may be changed or deleted afterwards.
            artifact_path: Folder of the run's artifacts to put it in.

        Raises:
            FileNotFoundError: If there is nothing at `path`.
        """
        try:
            folder = self._pending.open() if Path(path).exists() else None
            self._outbox.put(Artifact.copy_of(Path(path), artifact_path, folder))
        except FileNotFoundError:
            raise
        except OSError as error:  # a full disk is no reason to end a training
            self._refuse([Refusal(f"artifact {path}", str(error), 0)])

    @keeps_random_state()
    def log_figure(self, figure: Any, artifact_file: str) -> None:
        """Draws a figure now and hands in the file.

        Args:
            figure: A figure of Matplotlib or Plotly.
            artifact_file: Where it goes; its ending says what it becomes.
        """
        self._staging().log_figure(self.run_id, figure, artifact_file)

    @keeps_random_state()
    def log_image(self, image: Any, *, key: str, step: int = 0) -> None:
        """Hands in an image of one step, for which the MLflow UI has a slider.

        Args:
            image: uint8 of shape `[height, width, 3 or 4]`, or what `MlflowClient.log_image` takes.
            key: Name of the series: letters, digits, spaces and `_ - . /`.
            step: Training batches consumed so far.
        """
        self._staging().log_image(self.run_id, image, key=key, step=step, synchronous=True)

    @keeps_random_state()
    def log_text(self, text: str, artifact_file: str) -> None:
        """Hands in a text file.

        Args:
            text: What it holds.
            artifact_file: Where it goes.
        """
        self._staging().log_text(self.run_id, text, artifact_file)

    @keeps_random_state()
    def log_dict(self, dictionary: Mapping[str, Any], artifact_file: str) -> None:
        """Hands in a JSON or YAML file.

        Args:
            dictionary: What it holds.
            artifact_file: Where it goes; a YAML file if it ends so.
        """
        self._staging().log_dict(self.run_id, dict(dictionary), artifact_file)

    @keeps_random_state()
    def log_table(self, data: Any, artifact_file: str) -> None:
        """Hands in a table, which the MLflow UI shows as such.

        It takes the place of the one that was there, where `mlflow.log_table` would append to it:
        a table that grows is handed in whole.

        Args:
            data: A pandas DataFrame, or a dict of columns.
            artifact_file: Where it goes; ends in `.json`.

        Raises:
            ValueError: If the name does not end in `.json`, or the columns differ in length.
        """
        self._outbox.put(table_of(data, artifact_file))

    @keeps_random_state()
    def log_model_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_type: str | None = None,
        step: int = 0,
        registered_model_name: str | None = None,
    ) -> str:
        """Hands in a copy of a folder in MLflow's model format, to become a LoggedModel.

        Returns:
            An id to use for the model until the store has given one: metrics and tags that are
            handed in with it get the true one.
        """
        model_id = f"{UID_PREFIX}{uuid.uuid4().hex}"
        copied = Artifact.copy_of(Path(folder), None, self._pending.open())
        arguments = (model_type, step, registered_model_name)
        self._outbox.put(
            Model(model_id, copied.path, name, dict(params or {}), dict(tags or {}), *arguments)
        )
        return model_id

    def delete_artifact(self, artifact_file: str) -> None:
        """Hands in the deletion of an artifact, in order: after an upload handed in before.

        Where the artifact store cannot delete, or does not let us, the file stays; one warning.

        Args:
            artifact_file: Where it is.
        """
        self._outbox.put(Deletion(artifact_file))

    def log_dataset(self, dataset: Dataset, *, context: str) -> None:
        """Hands in a dataset that the run uses.

        Args:
            dataset: Its name and digest, as they stand in the metrics that are measured on it.
            context: What for: "training", "validation", "test".
        """
        self._outbox.put(dataset.as_input(context))

    def describe(self, description: str) -> None:
        """Hands in the run's description.

        Args:
            description: In Markdown; its first line should say the result.
        """
        self.set_tags({MLFLOW_RUN_NOTE: description})

    def flush(self, timeout: float | None = None, *, files: bool = True) -> bool:
        """Waits until everything handed in so far is in the store, or was refused by name.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.
            files: Whether to wait for files too that are put off, as their store is away.

        Returns:
            Whether it is.
        """
        began = time.monotonic()
        settled, aside = self._outbox.flush(timeout), self._aside
        if not settled or aside is None or not files:
            return settled
        left = None if timeout is None else max(timeout - (time.monotonic() - began), 0.0)
        return aside.flush(left)

    def settle(self, seconds: float) -> bool:
        """As `flush`, for as long as the store goes on taking values.

        Args:
            seconds: How long to wait for a store that takes nothing; less if it has been failing.

        Returns:
            Whether everything is in the store, or was refused by name.
        """
        return self._outbox.settle(seconds)

    def log_status(self, status: str, end_time: int | None = None) -> None:
        """Hands in the status with which the run ended: FINISHED, FAILED or KILLED.

        Args:
            status: The status.
            end_time: When, in milliseconds since the epoch; default: now.
        """
        self._outbox.put(End(status, end_time or time.time_ns() // 1_000_000))

    def close(self, timeout: float) -> bool:
        """Delivers what is left, and takes no more.

        Args:
            timeout: Seconds. As long as the store goes on taking values it is waited for; if it
                takes none for so long, what is left stays in the journal, with one warning.

        Returns:
            Whether everything is in the store.
        """
        settled, aside = self._outbox.close(timeout), self._aside
        return settled if aside is None else aside.close(timeout) and settled

    def _staging(self) -> StagingClient:
        return StagingClient(self.tracking_uri, self.log_artifact, self.set_tags)

    def _keys_of(self, kind: str, names: Iterable[str]) -> Mapping[str, str]:
        """The keys of these names; what MLflow does not show of the names goes to a tag first."""
        keyed = self._keys[kind].of(names)
        for name, key, owner in keyed.collided:
            _logger.warning(
                "The %s %r and %r of run %s would be one in MLflow, which does not accept some of "
                "their characters: %r is recorded as %r.",
                kind,
                owner,
                name,
                self.run_id,
                name,
                key,
            )
        if keyed.pages:
            self._outbox.put(Tags(keyed.pages))
        return keyed.keys

    def _refuse(self, refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            self._delivery.warn_refused(refusal.name, refusal.reason)
            self._outbox.put(refusal)

    def _new_aside(self) -> Aside:
        new_journal = functools.partial(self._new_journal, aside=True)
        self._aside = Aside(self.run_id, self._client, new_journal, self._in_use)
        return self._aside

    def _new_journal(self, *, aside: bool = False) -> Journal:
        store = normalized_uri(self._client.tracking_uri)
        is_ours = self._ends_run_in == os.getpid() or self._in_use()
        ends_run = is_ours and not self._others_end_run and not aside
        host, pid = socket.gethostname(), os.getpid()
        about = About(self.run_id, store, ends_run, host, pid, aside)
        return Journal.create(journals_folder(), about)
