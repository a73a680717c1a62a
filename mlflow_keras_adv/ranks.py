"""Which of the processes of one training this is. Imports neither MLflow nor TensorFlow.

Several processes that train one model are one training, and so one run: the first of them, the
chief, opens, writes and ends it. The others observe their steps alike and record nothing.
"""

import json
import logging
import os
from dataclasses import dataclass

from mlflow_keras_adv.errors import UserError

_logger = logging.getLogger(__name__)

# Says by hand which rank a process is: 0 for one that trains by itself, whatever started it.
VARIABLE = "MLFLOW_KERAS_ADV_RANK"

# What launchers tell each process: its number, and how many there are.
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True)
class Rank:
    """One process of a training.

    Attributes:
        number: Its number; 0 is the chief.
        told_by: The variable that says so; empty if none does.
    """

    number: int = 0
    told_by: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether it writes to the run of the training."""
        return self.number == 0


def this_rank() -> Rank:
    """The rank of this process, by the first of these variables that tells it.

    `MLFLOW_KERAS_ADV_RANK`; `TF_CONFIG`; `RANK` and `WORLD_SIZE`; `SLURM_PROCID` and
    `SLURM_NTASKS`. A process that none tells of is the chief of a training of its own; so are the
    coordinator, the servers of parameters and the evaluator of a `TF_CONFIG`.

    Raises:
        UserError: `MLFLOW_KERAS_ADV_RANK` or `TF_CONFIG` cannot be read.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if said:
        if not said.isdecimal():
            raise UserError(f"Received {VARIABLE}={said!r}; expected 0 for the chief, or 1, 2, ….")
        return Rank(int(said), VARIABLE)
    if config := os.environ.get("TF_CONFIG", "").strip():
        return Rank(_number_in(config), "TF_CONFIG")
    for number, count in _LAUNCHERS:
        own, all_of_them = os.environ.get(number, ""), os.environ.get(count, "")
        if own.isdecimal() and all_of_them.isdecimal() and int(all_of_them) > 1:
            return Rank(int(own), number)
    return Rank()


def say_who_writes(rank: Rank) -> None:
    """Says once in a process that it records nothing, and what to do if that is not meant."""
    if _said:
        return
    _said.append(rank)
    say = _logger.info if rank.told_by in (VARIABLE, "TF_CONFIG") else _logger.warning
    say(
        "This process is rank %d of a training (%s): rank 0 writes its run, and nothing is "
        "recorded here. If it trains by itself, set %s=0.",
        rank.number,
        rank.told_by,
        VARIABLE,
    )


_said: list[Rank] = []


def _number_in(config: str) -> int:
    try:
        told = json.loads(config)
        cluster, task = told.get("cluster", {}), told.get("task", {})
        kind, index = task.get("type", ""), int(task.get("index", 0))
        chiefs = len(cluster.get("chief", ())) + len(cluster.get("master", ()))
        with_servers = "ps" in cluster
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"TF_CONFIG cannot be read: {error}. Expected JSON such as "
            '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}.'
        ) from error
    if kind != "worker" or with_servers:  # its workers are servers, too, and train nothing
        return 0
    return chiefs + index
