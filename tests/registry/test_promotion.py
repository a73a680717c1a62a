"""Promotion on the real store: what moves, what stays, what is written down, who wins."""

import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry import (
    Measurements,
    Promotion,
    Samples,
    aliases,
    floor,
    history,
    non_inferiority,
    register,
    rollback,
    same_dataset,
)
from tests.registry.conftest import GATES, promoted, read_numbers

Log = Callable[..., str]


def aliases_of(name: str) -> dict[str, str]:
    found = MlflowClient().get_registered_model(name).aliases
    return {role: str(version) for role, version in found.items()}


def test_a_first_version_stands_on_its_floors(name: str, log: Log, client: MlflowClient) -> None:
    gates = [*GATES, non_inferiority()]
    refused = promoted(name, log(accuracy=0.4), gates=gates)
    assert refused.outcome == "refused"
    assert aliases_of(name) == {"challenger": "1"}
    done = promoted(name, log(accuracy=0.6), gates=gates)
    assert (done.outcome, done.champion) == ("promoted", "2")
    assert aliases_of(name) == {"challenger": "2", "champion": "2"}
    assert client.get_model_version_by_alias(name, "champion").source == done.evidence.candidate


@pytest.mark.quick
def test_the_champion_is_the_measure_from_then_on(name: str, log: Log) -> None:
    gates = [*GATES, non_inferiority(margin=0.01)]
    for accuracy, outcome, champion in (
        (0.8, "promoted", "1"),
        (0.78, "refused", "1"),
        (0.795, "promoted", "3"),
        (0.786, "promoted", "4"),
    ):
        done = promoted(name, log(accuracy=accuracy), gates=gates)
        assert (done.outcome, done.champion) == (outcome, champion)
    assert aliases_of(name) == {"challenger": "4", "champion": "4", "previous_champion": "3"}


def test_the_evidence_is_on_a_run_of_its_own_and_on_the_version(
    name: str, log: Log, client: MlflowClient
) -> None:
    promoted(name, log(accuracy=0.8))
    done = promoted(
        name, log("small", accuracy=0.9), reason="smaller", gates=[*GATES, floor("x", 1)]
    )
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["promotion"] == "refused"
    assert "FAIL x at least 1" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["final/accuracy"] == 0.9
    assert run.data.metrics["champion/accuracy"] == 0.8
    evidence = json.loads(
        mlflow.artifacts.load_text(f"runs:/{done.run_id}/promotion/evidence.json")
    )
    assert [gate["passed"] for gate in evidence["gates"]] == [True, False]
    assert evidence["champion_version"] == "1"
    assert evidence["models"]["champion"]["metrics"] == {"accuracy": 0.8}
    assert evidence["dataset"] == {"name": "toy", "digest": "d1", "samples": 100}
    assert "x at least 1" in mlflow.artifacts.load_text(
        f"runs:/{done.run_id}/promotion/evidence.html"
    )
    tags = client.get_model_version(name, "2").tags
    assert tags["gates"] == "failed"
    assert tags["gates.evidence"] == f"runs:/{done.run_id}/promotion/evidence.html"
    assert tags["gate.accuracy at least 0.5"] == "pass: 0.9"
    assert tags["gate.x at least 1"] == "FAIL: no 'x' was measured, but accuracy"
    assert tags["technique"] == "toy"
    assert tags["variant"] == "small"


def test_the_numbers_are_linked_to_the_candidate(name: str, log: Log, client: MlflowClient) -> None:
    uri = log(accuracy=0.8, recorded={})
    done = promoted(name, uri)
    linked = client.get_logged_model(uri.removeprefix("models:/")).metrics
    assert [(m.key, m.value, m.dataset_digest, m.run_id) for m in linked] == [
        ("final/accuracy", 0.8, "d1", done.run_id)
    ]


def test_what_promotion_itself_measured_is_no_record_of_the_dataset(name: str, log: Log) -> None:
    uri = log(accuracy=0.8, digest="d2")  # trained and scored on another dataset
    for _ in range(2):  # the second time the first one's numbers on d1 are linked to the model
        done = promoted(name, uri, gates=[same_dataset()])
        assert done.outcome == "refused"
        assert (
            done.evidence.verdicts[0].reason == "measured on d1; the candidate was recorded on d2"
        )


def test_the_evidence_goes_to_the_run_that_is_open(name: str, log: Log) -> None:
    with mka.track("mine", log_system_metrics=False) as run:
        assert promoted(name, log(accuracy=0.8)).run_id == run.run_id


def test_a_dry_run_changes_nothing(
    name: str, log: Log, experiment: str, client: MlflowClient
) -> None:
    uri = log(accuracy=0.8)
    before = client.search_runs([experiment])
    for accepted, outcome in ((0.5, "passed"), (0.9, "refused")):
        done = promoted(name, uri, dry_run=True, gates=[floor("accuracy", accepted)])
        assert (done.outcome, done.run_id, done.champion) == (outcome, "", "")
    assert len(client.search_runs([experiment])) == len(before)
    assert client.search_registered_models(f"name = '{name}'") == []
    metrics = client.get_logged_model(uri.removeprefix("models:/")).metrics
    assert len(metrics) == 1
    with mka.track("open", log_system_metrics=False) as run:
        promoted(name, uri, dry_run=True)
    assert client.list_artifacts(run.run_id, "promotion")
    assert client.search_registered_models(f"name = '{name}'") == []


@pytest.mark.quick
def test_history_tells_who_when_what_why_and_from_which_run(
    name: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    first = promoted(name, log(accuracy=0.8), reason="the first")
    second = promoted(name, log(accuracy=0.4))
    rollback_refused = pytest.raises(UserError, match="no previous champion")
    with rollback_refused:
        rollback(name)
    promoted(name, log(accuracy=0.9), reason="better")
    rollback(name, reason="it was slow")
    trail = history(name)
    assert [(e.what, e.version, e.before, e.reason) for e in trail] == [
        ("promoted", "1", "", "the first"),
        ("refused", "2", "1", ""),
        ("promoted", "3", "1", "better"),
        ("rolled back", "1", "3", "it was slow"),
    ]
    assert {entry.who for entry in trail} == {"ada"}
    assert [trail[0].run_id, trail[1].run_id] == [first.run_id, second.run_id]
    assert trail[1].gates == "0 of 1 passed; failed: accuracy at least 0.5"
    assert trail[0].model == first.evidence.candidate
    assert [entry.when for entry in trail] == sorted(entry.when for entry in trail)
    assert "champion version 1 -> 3  by ada; gates: 1 of 1 passed; why: better; run: " in str(
        trail[2]
    )


def test_rollback_goes_back_one_champion_at_a_time(name: str, log: Log) -> None:
    for _ in range(3):
        promoted(name, log(accuracy=0.8))
    assert rollback(name).version == "2"
    assert rollback(name).version == "1"
    with pytest.raises(UserError, match="no previous champion"):
        rollback(name)
    promoted(name, log(accuracy=0.8))
    assert rollback(name).version == "1"
    assert aliases_of(name)["champion"] == "1"


def test_a_model_goes_from_one_environment_to_the_next(
    name: str, log: Log, client: MlflowClient
) -> None:
    dev, prod = f"dev.{name}", f"prod.{name}"
    promoted(dev, log(accuracy=0.8))
    done = promoted(prod, f"models:/{dev}@champion")
    version = client.get_model_version(prod, "1")
    # Not a pointer to the version of dev, which could be deleted, with dev's verdicts as its tags.
    assert version.source == done.evidence.candidate
    assert version.source.startswith("models:/m-")
    assert version.tags["gates.evidence"] == f"runs:/{done.run_id}/promotion/evidence.html"
    client.copy_model_version(f"models:/{dev}/1", f"copy.{name}")
    with pytest.raises(UserError, match="is the champion of .* already"):
        promoted(prod, f"models:/copy.{name}/1")


def test_the_ways_to_name_a_candidate(name: str, log: Log, client: MlflowClient) -> None:
    uri = log("net", accuracy=0.8)
    run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
    version = register(f"other.{name}", f"runs:/{run_id}/net")
    client.set_registered_model_alias(f"other.{name}", "nightly", version.version)
    assert register(f"other.{name}", uri).version == version.version  # once
    others = (f"models:/other.{name}/1", f"models:/other.{name}@nightly", f"runs:/{run_id}")
    for candidate in (uri, f"runs:/{run_id}/net", *others):
        assert promoted(name, candidate, dry_run=True).evidence.candidate == uri


def test_the_best_of_an_experiment(name: str, log: Log) -> None:
    best = log("best", accuracy=0.9, gzip_bytes=100, size_bytes=200)
    log("as_good", accuracy=0.9, gzip_bytes=101, size_bytes=200)
    log("worse", accuracy=0.8, gzip_bytes=1, size_bytes=1)
    small = log("small", accuracy=0.7, gzip_bytes=1, size_bytes=2)
    log("big", accuracy=0.95, gzip_bytes=1, size_bytes=999)
    log("elsewhere", accuracy=1.0, digest="d2")
    log("unscored", size_bytes=1)
    limits = [floor("accuracy", 0.6), mka.registry.budget(max_size_bytes=500)]
    one = promoted(name, "best-of-experiment", gates=limits, dry_run=True)
    assert one.evidence.candidate == best
    strict = [floor("accuracy", 0.6), mka.registry.ceiling("gzip_bytes", 50)]
    strict += [mka.registry.ceiling("size_bytes", 2), mka.registry.ceiling("latency_ms_p50", 0)]
    two = promoted(
        name, "best-of-experiment", gates=[*strict, floor("size_bytes", 2)], dry_run=True
    )
    assert two.evidence.candidate == small  # the recorded latency is not asked


def test_where_there_is_no_best_it_says_what_to_do(name: str, log: Log) -> None:
    with pytest.raises(UserError, match="has 0 models .* dataset d1. Train some .*mlflow run"):
        promoted(name, "best-of-experiment")
    log(accuracy=0.4)
    with pytest.raises(UserError, match="has 1 models .* none passes the floors"):
        promoted(name, "best-of-experiment")


def test_what_is_no_candidate_is_refused(name: str, log: Log, client: MlflowClient) -> None:
    uri = log("net", accuracy=0.8)
    promoted(name, uri)
    with pytest.raises(UserError, match="is the champion of .* already, version 1"):
        promoted(name, uri)
    pending = client.create_logged_model(client.get_run(history(name)[0].run_id).info.experiment_id)
    run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
    for candidate, message in (
        ("models:/m-0123456789abcdef", "not found"),
        (f"models:/{pending.model_id}", "is PENDING"),
        (f"models:/{name}/99", "not found"),
        (f"models:/{name}@nobody", "alias nobody not found"),
        ("models:/nobody/1", "not found"),
        (f"runs:/{run_id}/other", r"no finished models other: net \(models:/m-"),
        ("runs:/0123456789abcdef0123456789abcdef/net", "not found"),
        (f"models:/{name}/latest", "names no model. Give models:/m-"),
        ("../../etc/passwd", "names no model"),
        ("", "names no model"),
    ):
        with pytest.raises(UserError, match=message):
            promoted(name, candidate)
    assert len(history(name)) == 1


@pytest.mark.parametrize("bad", ["", " ", "a/b", "a:b", "a'b", 'a"b', "a\nb", "a@b"])
def test_what_is_no_name_is_refused(bad: str, experiment: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a registered model"):
        promoted(bad, "models:/m-0")


def test_bad_arguments_are_refused_before_anything_is_measured(name: str, log: Log) -> None:
    uri = log(accuracy=0.8)
    with pytest.raises(ValueError, match="needs gates"):
        promoted(name, uri, gates=[])
    with pytest.raises(ValueError, match="at most 2000"):
        promoted(name, uri, reason="x" * 2001)
    with pytest.raises(UserError, match="hold no samples"):
        promoted(name, uri, data=(np.zeros((0, 2)), np.zeros(0)))
    with pytest.raises(ValueError, match="0 measurements for 1 models"):
        promoted(name, uri, measure=lambda *_: [])


def folder_of(uri: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(uri))


def test_a_model_that_was_changed_is_refused(name: str, log: Log) -> None:
    uri = log(accuracy=0.8)
    register(name, uri)
    file = folder_of(uri) / "data" / "numbers.json"
    original = file.read_bytes()
    file.write_text(json.dumps({"accuracy": 0.99}))
    changed = "is not what was registered: its sha256 is [0-9a-f]{64}, recorded is [0-9a-f]{64}"
    for candidate in (uri, f"models:/{name}/1"):
        with pytest.raises(UserError, match=changed):
            promoted(name, candidate)
    with pytest.raises(UserError, match=changed):
        register(name, uri)
    assert history(name) == []
    file.write_bytes(original)
    assert promoted(name, uri).outcome == "promoted"


def test_a_champion_that_was_changed_fails_what_compares_with_it(name: str, log: Log) -> None:
    first = log(accuracy=0.8)
    promoted(name, first)
    (folder_of(first) / "data" / "more.txt").write_text("added")
    done = promoted(name, log(accuracy=0.9), gates=[*GATES, non_inferiority()])
    assert done.outcome == "refused"
    assert "the champion: it could not be measured" in done.evidence.verdicts[1].reason
    assert promoted(name, log(accuracy=0.9)).outcome == "promoted"  # the floor alone does not ask
    with pytest.raises(UserError, match="is not what was registered"):
        rollback(name)
    assert aliases_of(name)["champion"] == "3"


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(name: str, log: Log) -> None:
    promoted(name, log(accuracy=0.8))
    both_measured = threading.Barrier(2, timeout=60)

    def measure(folders: Sequence[Path], samples: Samples) -> list[Measurements]:
        both_measured.wait()
        return read_numbers(folders, samples)

    done: list[Promotion] = []
    uris = [log(accuracy=0.9), log(accuracy=0.91)]
    threads = [
        threading.Thread(target=lambda uri=uri: done.append(promoted(name, uri, measure=measure)))
        for uri in uris
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.outcome for each in done) == ["lost", "promoted"]
    (winner,) = [each for each in done if each.outcome == "promoted"]
    (loser,) = [each for each in done if each.outcome == "lost"]
    assert aliases_of(name)["champion"] == winner.evidence.version == loser.champion
    assert aliases_of(name)["previous_champion"] == "1"
    assert f"it is version {winner.evidence.version}" in loser.sentence
    assert sorted(entry.what for entry in history(name)) == ["lost", "promoted", "promoted"]
    tags = MlflowClient().get_registered_model(name).tags
    assert [key for key in tags if key.startswith("moving.")] == []


def test_who_moves_the_champion_by_hand_meanwhile_wins(
    name: str, log: Log, client: MlflowClient
) -> None:
    promoted(name, log(accuracy=0.8))
    register(name, log(accuracy=0.7))

    def by_hand(folders: Sequence[Path], samples: Samples) -> list[Measurements]:
        client.set_registered_model_alias(name, "champion", "2")
        return read_numbers(folders, samples)

    done = promoted(name, log(accuracy=0.9), measure=by_hand)
    assert (done.outcome, done.champion) == ("lost", "2")
    assert aliases_of(name)["champion"] == "2"


def test_a_move_right_after_ours_is_seen(
    name: str, log: Log, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(name, log(accuracy=0.7))
    move = MlflowClient.set_registered_model_alias

    def twice(self: MlflowClient, model: str, role: str, version: str) -> None:
        move(self, model, role, version)
        if role == "champion":
            move(self, model, role, "1")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", twice)
    done = promoted(name, log(accuracy=0.9))
    assert (done.outcome, done.champion) == ("lost", "1")


def test_an_announcement_of_a_dead_process_is_not_waited_for_for_ever(
    name: str, log: Log, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(name, log(accuracy=0.7))
    client.set_registered_model_tag(name, "moving.0123", "bob")
    monkeypatch.setattr(aliases, "STALE_SECONDS", 0.2)
    assert promoted(name, log(accuracy=0.9)).outcome == "promoted"
    assert "moving.0123" not in client.get_registered_model(name).tags


def test_an_interrupted_move_withdraws_its_announcement(
    name: str, log: Log, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow_keras_adv.registry.promotion.move_champion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        promoted(name, log(accuracy=0.9))
    tags = client.get_registered_model(name).tags
    assert [key for key in tags if key.startswith("moving.")] == []
    assert "champion" not in aliases_of(name)


def test_tags_that_are_no_entries_do_not_break_the_trail(
    name: str, log: Log, client: MlflowClient
) -> None:
    promoted(name, log(accuracy=0.8))
    client.set_registered_model_tag(name, "promotion.zzz", "\x1b[31m<script>not json")
    client.set_registered_model_tag(name, "promotion.zzzz", '{"what": "promoted"}')
    assert [entry.what for entry in history(name)] == ["promoted", "unreadable", "unreadable"]
    assert not re.search(r"[\x00-\x1f]", "".join(str(entry) for entry in history(name)))


def test_an_unknown_model_has_no_history(experiment: str) -> None:
    with pytest.raises(UserError, match="'nobody' cannot be read"):
        history("nobody")
    with pytest.raises(UserError, match="no previous champion"):
        rollback("nobody")


def test_a_registry_that_is_read_only_is_said_before_anything_is_measured(
    name: str, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = log(accuracy=0.8)
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: f"sqlite:///{blocked}/registry.db")
    with pytest.raises(UserError, match="cannot be written"):
        promoted(name, uri)


def test_offline_nothing_is_promoted(name: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = log(accuracy=0.8)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
    with pytest.raises(UserError, match="cannot be changed offline"):
        promoted(name, uri)


def test_evidence_that_does_not_arrive_promotes_nothing(
    name: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mka.Run, "flush", lambda *_: False)
    with pytest.raises(UserError, match="evidence is not in the store"):
        promoted(name, log(accuracy=0.8))
    assert "champion" not in aliases_of(name)
