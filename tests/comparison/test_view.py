"""The prepared view: the tag that holds it, and what is said where there can be none.

That MLflow's page makes of it what it should is seen in test_in_the_browser.py.
"""

import base64
import json
import zlib
from typing import Any
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import mlflow_keras_adv as mka
from mlflow_keras_adv.comparison import view
from mlflow_keras_adv.comparison.view import view_address
from tests.comparison import made_runs
from tests.mlflow_server import free_port

TAG = "mlflow.sharedViewState."


def state_of(client: MlflowClient, experiment: str, address: str) -> dict[str, Any]:
    """What the page would read for an address."""
    key = address.partition("viewStateShareKey=")[2]
    saved = json.loads(client.get_experiment(experiment).tags[TAG + key])
    assert saved.keys() == {"name", "createdAt", "updatedAt", "state"}
    packed = saved["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def two_variants(run: mka.Run) -> dict[str, mka.Run]:
    variants = {}
    for name, accuracy in {"a": 0.5, "b": 0.9}.items():
        with run.child(name, params={"lr": accuracy}) as child:
            child.log_metrics({"final/accuracy": accuracy, "val/accuracy": accuracy})
            for step in (10, 20):
                child.log_metrics({"batch/loss": 1 / step, "system/load": 1.0}, step=step)
        variants[name] = child
    return variants


def test_every_parent_says_where_its_nested_runs_are_drawn(
    client: MlflowClient, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mka.track("parent", log_system_metrics=False) as run:
        mka.log_comparison(two_variants(run))

    (line,) = capsys.readouterr().out.splitlines()
    address = line.partition(", charts http://127.0.0.1:5000")[2]
    assert address.startswith(f"/#/experiments/{experiment}/runs?compareRunsMode=CHART&")
    state = state_of(client, experiment, address)
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    assert len(client.search_runs([experiment], state["searchFilter"])) == 2
    # Sorted by the start, nested runs would be folded into their parent.
    assert state["orderByKey"] == "metrics.`final/accuracy`"
    assert state["orderByAsc"] is False
    assert state["runsHiddenMode"] == "SHOW_ALL"
    charts = {(each["type"], each.get("metricKey")) for each in state["compareRunCharts"]}
    assert {("BAR", "final/accuracy"), ("LINE", "val/accuracy"), ("LINE", "batch/loss")} <= charts
    assert ("PARALLEL", None) in charts
    shown = {each["name"]: each["display"] for each in state["compareRunSections"]}
    assert shown == {
        **dict.fromkeys(["Result", "Curves", "Steps and gradients"], True),
        "Result over parameters": True,
        **dict.fromkeys(["System metrics", "batch", "final", "val"], False),
    }


def test_any_runs_are_listed_by_their_ids_and_the_same_runs_have_one_view(
    client: MlflowClient, experiment: str
) -> None:
    ids = [made_runs.log_technique(client, experiment, "int8", seed) for seed in (0, 1)]
    runs = [client.get_run(run_id) for run_id in ids]
    address = view_address(runs, name="x" * 8000, score="final/loss", directions={})
    assert address is not None
    state = state_of(client, experiment, address)
    found = client.search_runs([experiment], state["searchFilter"])
    assert {run.info.run_id for run in found} == set(ids)
    assert state["orderByAsc"] is True  # of losses the lowest first
    assert view_address(runs, name="again", score="final/loss", directions={}) == address
    tags = client.get_experiment(experiment).tags
    assert sum(key.startswith(TAG) for key in tags) == 1


def test_views_do_not_pile_up_and_others_views_stay(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_experiment_tag(experiment, f"{TAG}of-somebody", "{}")
    client.set_experiment_tag(experiment, f"{TAG}mka-broken", "not JSON")
    monkeypatch.setattr(view, "KEPT_VIEWS", 2)
    run = client.get_run(made_runs.log_technique(client, experiment, "int8", 0))
    addresses = [
        view_address([run], name="n", score=None, directions={}, parent_run_id=f"{n}" * 32)
        for n in range(4)
    ]
    left = {key for key in client.get_experiment(experiment).tags if key.startswith(TAG)}
    kept = {f"{TAG}{address.partition('viewStateShareKey=')[2]}" for address in addresses[2:]}
    assert left == {f"{TAG}of-somebody", *kept}


def test_who_may_not_write_gets_the_plain_address(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.get_run(made_runs.log_technique(client, experiment, "int8", 0))

    def refused(*arguments: object) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refused)
    address = view_address([run], name="n", score="final/accuracy", directions={})
    assert address is not None
    assert "viewStateShareKey" not in address
    assert f"attributes.run_id IN ('{run.info.run_id}')" in unquote(address)
    assert "orderByAsc=false&compareRunsMode=CHART" in address


def test_runs_of_several_experiments_have_mlflows_page_for_these(
    client: MlflowClient, experiment: str, tmp_path: Any
) -> None:
    other = client.create_experiment(f"{experiment}-other", tmp_path.as_uri())
    ids = [made_runs.log_technique(client, each, "int8", 0) for each in (experiment, other)]
    address = view_address(
        [client.get_run(each) for each in ids], name="n", score=None, directions={}
    )
    assert address is not None
    assert f'experiments=["{experiment}", "{other}"]' in unquote(address)
    assert not [key for key in client.get_experiment(other).tags if key.startswith(TAG)]


def test_an_offline_parent_is_compared_and_says_no_address(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
    with mka.track("parent", log_system_metrics=False) as run:
        assert mka.log_comparison(two_variants(run)) == "b"
    assert "charts" not in capsys.readouterr().out


def test_a_server_that_is_away_costs_no_retries(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.get_run(made_runs.log_technique(client, experiment, "int8", 0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert view_address([run], name="n", score=None, directions={}) is None


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_come_first_as_mode_says(mode: Any, client: MlflowClient, experiment: str) -> None:
    """Of a score whose name says nothing, and which no run has recorded."""
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    for value, run_id in enumerate(runs):
        client.log_metric(run_id, "val/zeta", value)
    address = mka.compare(runs, monitor="val/zeta", mode=mode, log=False).address
    assert address is not None
    assert state_of(client, experiment, address)["orderByAsc"] is (mode == "min")
