"""Programs as users of MLflow write them, none of which knows of durable addresses."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag
from sklearn.linear_model import LogisticRegression

Program = Callable[[Path], None]


def fluent(folder: Path) -> None:
    with mlflow.start_run(run_name="fluent", tags={"team": "a"}, description="of a script"):
        mlflow.log_param("rate", 0.1)
        mlflow.log_params({"layers": 3, "units": "[8, 8]"})
        mlflow.set_tags({"stage": "draft", "long": "x" * 600})
        for step in range(30):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
            mlflow.log_metrics({"accuracy": step / 30, "nan": float("nan")}, step=step)
        mlflow.log_metric("infinite", float("inf"))
        mlflow.log_metric("without a step", 7)
        mlflow.set_tag("stage", "done")
        mlflow.delete_tag("team")


def files(folder: Path) -> None:
    (folder / "more" / "inner").mkdir(parents=True)
    (folder / "more" / "a.txt").write_text("a")
    (folder / "more" / "inner" / "b.txt").write_text("b")
    with mlflow.start_run(run_name="files"):
        mlflow.log_text("hello", "notes/hello.txt")
        mlflow.log_dict({"a": 1}, "config.json")
        mlflow.log_artifact(str(folder / "more" / "a.txt"), "single")
        mlflow.log_artifact(str(folder / "more"))
        mlflow.log_artifacts(str(folder / "more"), "all")
        mlflow.log_artifacts(str(folder / "more"))
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3])
        mlflow.log_figure(figure, "curve.png")
        plt.close(figure)
        mlflow.log_image(np.zeros((8, 8, 3), np.uint8), key="black", step=3)
        mlflow.flush_artifact_async_logging()
        mlflow.log_table({"x": [1, 2], "y": ["a", "b"]}, "table.json")
        mlflow.log_table({"x": [3], "y": ["c"]}, "table.json")


def of_the_client(folder: Path) -> None:
    client = MlflowClient()
    parent = client.create_run("0", run_name="parent", start_time=1_700_000_000_000)
    child = client.create_run(
        "0", run_name="child", tags={"mlflow.parentRunId": parent.info.run_id}
    )
    run_id = child.info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric("m", value, 1_700_000_000_000 + value, value) for value in range(50)],
        params=[Param("p", "1"), Param("q", "")],
        tags=[RunTag("t", "v")],
    )
    client.log_metric(run_id, "m", 3.5, timestamp=1_700_000_001_000, step=50)
    client.update_run(run_id, name="renamed")
    client.set_terminated(run_id, "FAILED", end_time=1_700_000_002_000)
    client.log_metric(run_id, "after the end", 1.0, timestamp=1_700_000_003_000)
    client.set_terminated(parent.info.run_id)


def asynchronous(folder: Path) -> None:
    with mlflow.start_run(run_name="asynchronous"):
        for step in range(20):
            mlflow.log_metric("loss", step, step=step, synchronous=False)
        mlflow.log_params({"a": 1, "b": 2}, synchronous=False).wait()
        mlflow.set_tag("t", "v", synchronous=False)
        mlflow.flush_async_logging()


def dataset(folder: Path) -> None:
    data = mlflow.data.from_pandas(pd.DataFrame({"x": [1.0, 2.0]}), name="two rows")
    with mlflow.start_run(run_name="dataset"):
        mlflow.log_input(data, context="training")
        mlflow.log_metric("score", 0.5, step=1, dataset=data)


def model(folder: Path) -> None:
    fitted = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    with mlflow.start_run(run_name="model"):
        mlflow.log_param("C", 1.0)
        mlflow.log_metric("score", 0.5, step=2)
        mlflow.sklearn.log_model(
            fitted, name="classifier", input_example=np.eye(4)[:2], params={"k": 1}, step=2,
            pip_requirements=["scikit-learn"],
        )  # fmt: skip


def external_model(folder: Path) -> None:
    with mlflow.start_run(run_name="external"):
        made = mlflow.initialize_logged_model(name="external", tags={"a": "b"})
        mlflow.log_model_params({"depth": 3}, model_id=made.model_id)
        mlflow.set_logged_model_tags(made.model_id, {"c": "d"})
        mlflow.log_metric("score", 0.25, step=1, model_id=made.model_id)
        mlflow.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


def autologged(folder: Path) -> None:
    mlflow.sklearn.autolog(log_datasets=False)
    try:
        with mlflow.start_run(run_name="autologged"):
            LogisticRegression(C=0.5).fit(np.eye(4), [0, 1, 0, 1])
    finally:
        mlflow.sklearn.autolog(disable=True)


def breaks(folder: Path) -> None:
    try:
        with mlflow.start_run(run_name="breaks"):
            mlflow.log_metric("loss", 1.0)
            raise RuntimeError("in the middle")
    except RuntimeError:
        pass


PROGRAMS: list[Program] = [
    fluent, files, of_the_client, asynchronous, dataset, model, external_model, autologged, breaks,
]  # fmt: skip
