"""The load of the machine on a run: measured by MLflow, and delivered like all else of the run.

MLflow's own monitor asks the store after each sample whether the run goes on, logs past our
journal, and ends for good as soon as one request has failed. Here its samples are handed in.
"""

import logging
from threading import Thread

from mlflow_keras_adv.compat.mlflow import Monitor, monitor_arguments, monitors
from mlflow_keras_adv.tracking.process_end import started
from mlflow_keras_adv.tracking.writer import RunWriter

_logger = logging.getLogger(__name__)

# A sample takes milliseconds; the driver of a device may hang, and no run has to wait for it.
FINISH_SECONDS = 5.0


class MachineMonitor(Monitor):
    """MLflow's monitor, with its intervals and names; its thread needs no store.

    Args:
        run: Where to hand in the values.
        resumed: Whether the run may hold some already: then their steps go on.
    """

    def __init__(self, run: RunWriter, *, resumed: bool) -> None:
        known = monitor_arguments(run.tracking_uri)
        super().__init__(run.run_id, resume_logging=resumed, **known)
        self._run = run
        self._said = False

    def monitor(self) -> None:
        """Samples and hands in until `finish`; what fails once is tried the next time."""
        while not self.shutdown.is_set():
            try:
                for _ in range(self.samples_before_logging):
                    self.collect_metrics()
                    if self.shutdown.wait(self.sampling_interval):
                        return
                self.publish_metrics(self.aggregate_metrics())
            except Exception as error:
                self._say(error)
                self.shutdown.wait(self.sampling_interval)

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Hands in the values of an interval."""
        prefix = self.prefix + (f"{self.node_id}/" if self.node_id else "")
        named = {f"{prefix}{name}": value for name, value in metrics.items()}
        self._run.log_metrics(named, step=self.next_step())
        for monitor in self.monitors:
            monitor.clear_metrics()

    def finish(self) -> None:
        """Ends it: nothing is handed in afterwards. An unfinished interval is dropped, as ever."""
        thread = self.taken_thread()
        if thread is not None:
            self.shutdown.set()
            thread.join(FINISH_SECONDS)

    def _say(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            _logger.warning(
                "Run %s: the load of the machine is not recorded for now: %r",
                self._run.run_id,
                error,
            )


def watch_machine(run: RunWriter, *, resumed: bool) -> None:
    """Starts a monitor, which is found where MLflow's would be: `mlflow.end_run()` ends it too.

    Args:
        run: A run that this process ends.
        resumed: Whether the run was there before.
    """
    try:
        monitor = MachineMonitor(run, resumed=resumed)
    except Exception as error:  # no reason to end a training
        _logger.warning("Run %s is without the load of the machine: %r", run.run_id, error)
        return
    monitors()[run.run_id] = monitor
    monitor.start()


def stop_watching(run_id: str) -> Thread | None:
    """Ends the monitor of a run, if it has one.

    Returns:
        For MLflow's own monitor, which belongs to a run of `mlflow.start_run()`, the thread on
        which it says its last words, and which need not be waited for; else None.
    """
    monitor = monitors().pop(run_id, None)
    if isinstance(monitor, MachineMonitor):
        monitor.finish()
    elif monitor is not None:
        return started(monitor.finish, f"system-metrics-{run_id}")
    return None
