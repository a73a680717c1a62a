"""The tour without the compression extra; with it, it is run by its command in test_catalogue."""

import pytest
from mlflow import MlflowClient

from projects import main as tour


@pytest.mark.slow
def test_without_the_compression_extra_it_says_what_it_leaves_out(
    experiment: str,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tour, "find_spec", lambda name: None if name == "tf_keras" else object())

    tour.main(epochs=1)

    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"main", "baseline", "distilled"}
    missing = (
        "Left out: pruned and quantized, for want of tf_keras; "
        'pip install -e ".[compression]" adds them.'
    )
    note = runs["main"].data.tags["mlflow.note.content"]
    assert missing in note.splitlines()[0]
    assert missing in capsys.readouterr().out
    accuracy = runs["distilled"].data.metrics["final/accuracy"]
    assert f"| distilled | {accuracy:.1%} |" in note
