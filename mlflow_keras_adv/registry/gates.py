"""Gates: what a candidate has to pass, ready-made. Any function of the same shape is one too.

A gate receives what was measured of the candidate and of the champion, or None where there is no
champion yet, and returns a verdict. What compares with the champion passes without one, if the
candidate's own numbers are there: a first version stands on its floors alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflow_keras_adv.registry.paired import bootstrap_bound, exact_mcnemar, score_test
from mlflow_keras_adv.registry.samples import Measurements, MissingNumberError

_NO_CHAMPION = "no champion to compare with"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What a gate says.

    Attributes:
        passed: Whether the candidate may pass.
        reason: The numbers, in words.
    """

    passed: bool
    reason: str


Gate = Callable[[Measurements, Measurements | None], Verdict]


@dataclass(frozen=True)
class Judged:
    """A verdict beside the gate that it is of.

    Attributes:
        gate: What it asks for.
        passed: Whether the candidate passes.
        reason: The numbers, in words.
    """

    gate: str
    passed: bool
    reason: str


def judge(gate: Gate, candidate: Measurements, champion: Measurements | None) -> Judged:
    """Asks a gate. A number that is missing, and an error in the gate, fail it."""
    title = getattr(gate, "title", "") or getattr(gate, "__name__", "") or repr(gate)
    try:
        verdict = gate(candidate, champion)
        passed, reason = bool(verdict.passed), str(verdict.reason)
    except MissingNumberError as missing:
        passed, reason = False, str(missing)
    except Exception as error:  # a gate that breaks lets nobody through
        passed, reason = False, f"the gate failed: {type(error).__name__}: {error}"
    return Judged(title, passed, reason)


@dataclass(frozen=True)
class ReadyMade:
    """A gate with a title.

    Attributes:
        title: What it asks for.
        decide: The gate itself.
        on_record: The part of it that recorded numbers of a model can already answer.
    """

    title: str
    decide: Gate
    on_record: Gate | None = None

    def __call__(self, candidate: Measurements, champion: Measurements | None) -> Verdict:
        """Asks it."""
        return self.decide(candidate, champion)


def floor(metric: str, at_least: float) -> Gate:
    """The metric is not below `at_least`."""

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        value = candidate.number(metric)
        return Verdict(value >= at_least, f"{value:.6g}")

    return ReadyMade(f"{metric} at least {at_least:.6g}", decide, _recordable(metric, decide))


def ceiling(metric: str, at_most: float) -> Gate:
    """The metric is not above `at_most`."""

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        value = candidate.number(metric)
        return Verdict(value <= at_most, f"{value:.6g}")

    return ReadyMade(f"{metric} at most {at_most:.6g}", decide, _recordable(metric, decide))


def non_inferiority(
    metric: str = "accuracy",
    margin: float = 0.01,
    *,
    higher_is_better: bool = True,
    confidence: float | None = None,
) -> Gate:
    """The candidate is worse than the champion by no more than a margin.

    Where both were measured sample by sample, the verdict says how sure that is: for right and
    wrong answers by the exact test of McNemar, for other numbers by a paired bootstrap.

    Args:
        metric: A metric that both have.
        margin: Of the metric, in its own unit, that the candidate may lose; 0 or more.
        higher_is_better: False for an error or a loss.
        confidence: From 0.5 to 1, as 0.95: the loss has to be *shown* to be within the margin, not
            only seen to be: by the score test of Tango (1998) or by the bound of the bootstrap.
            On few samples only a candidate that is clearly not worse passes. Without paired
            numbers nothing can be shown, and the gate fails.

    Raises:
        ValueError: A margin below 0, or a confidence outside of its range.
    """
    if not 0 <= margin < float("inf"):
        raise ValueError(f"margin: received {margin}, expected 0 or more.")
    if confidence is not None and not 0.5 <= confidence < 1:
        raise ValueError(f"confidence: received {confidence}, expected 0.5 to below 1, as 0.95.")

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        value = candidate.number(metric)
        if champion is None:
            return Verdict(True, f"{value:.6g}; {_NO_CHAMPION}")
        before = _of_champion(champion, metric)
        loss = before - value if higher_is_better else value - before
        seen = f"{value:.6g} after {before:.6g}"
        shown, how = _confidence(candidate, champion, metric, higher_is_better, margin, confidence)
        passed = loss <= margin + _ROUNDING and (shown or confidence is None)
        return Verdict(passed, f"{seen}; {how}")

    surely = "" if confidence is None else f", with {confidence:.0%} confidence"
    return ReadyMade(f"{metric} worse by at most {margin:.6g}{surely}", decide)


def budget(*, max_size_bytes: float | None = None, max_latency_ratio: float | None = None) -> Gate:
    """What the candidate may take.

    Args:
        max_size_bytes: Of its file.
        max_latency_ratio: Its median latency in parts of the champion's, both measured now, in
            turns, in one process.

    Raises:
        ValueError: Neither is given.
    """
    if max_size_bytes is None and max_latency_ratio is None:
        raise ValueError("budget needs max_size_bytes=, max_latency_ratio= or both.")

    def size(candidate: Measurements, _: Measurements | None) -> Verdict:
        taken = candidate.number("size_bytes")
        fits = max_size_bytes is None or taken <= max_size_bytes
        return Verdict(fits, f"{taken:.0f} bytes")

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        verdicts = [] if max_size_bytes is None else [size(candidate, champion)]
        if max_latency_ratio is not None:
            takes = candidate.number("latency_ms_p50")
            if champion is None:
                verdicts.append(Verdict(True, f"{takes:.4g} ms; {_NO_CHAMPION}"))
            else:
                before = _of_champion(champion, "latency_ms_p50")
                reason = f"{takes:.4g} ms against {before:.4g} ms side by side"
                verdicts.append(Verdict(takes <= max_latency_ratio * before, reason))
        return Verdict(all(v.passed for v in verdicts), ", ".join(v.reason for v in verdicts))

    limits = {
        "at most {:.0f} bytes": max_size_bytes,
        "latency ratio at most {:.4g}": max_latency_ratio,
    }
    title = ", ".join(text.format(limit) for text, limit in limits.items() if limit is not None)
    return ReadyMade(title, decide, None if max_size_bytes is None else size)


def agreement(at_least: float) -> Gate:
    """Candidate and champion choose the same class on this share of the samples."""

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        if candidate.problem or candidate.chosen is None:
            raise MissingNumberError(candidate.problem or "the candidate chose no classes")
        if champion is None:
            return Verdict(True, _NO_CHAMPION)
        if champion.problem or champion.chosen is None:
            raise MissingNumberError(f"the champion: {champion.problem or 'it chose no classes'}")
        if candidate.chosen.shape != champion.chosen.shape:
            shapes = f"{candidate.chosen.shape} and {champion.chosen.shape}"
            raise MissingNumberError(f"their choices differ in shape: {shapes}")
        same = (candidate.chosen == champion.chosen) & (candidate.chosen >= 0)
        share = float(np.mean(same))
        return Verdict(share >= at_least, f"{share:.6g}")

    return ReadyMade(f"agrees with the champion on at least {at_least:.6g}", decide)


def same_dataset() -> Gate:
    """What is measured on now is what the models were recorded on: the same digest.

    Otherwise the samples may be such as the candidate was trained on.
    """

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        models = {"candidate": candidate} | ({} if champion is None else {"champion": champion})
        for role, each in models.items():
            digest = each.dataset.digest if each.dataset else ""
            if digest not in each.recorded_on:
                recorded = ", ".join(sorted(each.recorded_on)) or "no dataset"
                return Verdict(
                    False, f"measured on {digest}; the {role} was recorded on {recorded}"
                )
        digest = candidate.dataset.digest if candidate.dataset else ""
        return Verdict(True, digest if champion else f"{digest}; {_NO_CHAMPION}")

    return ReadyMade("same dataset as recorded", decide)


def loads_and_serves() -> Gate:
    """The candidate answers its own input example as a server would have it answer."""

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        if candidate.problem or candidate.serve is None:
            raise MissingNumberError(candidate.problem or "nobody has tried to serve it")
        problem = candidate.serve()
        return Verdict(not problem, problem or "it answers its input example")

    return ReadyMade("loads and serves", decide)


def _recordable(metric: str, decide: Gate) -> Gate | None:
    # Times of another machine and day say nothing about now.
    return None if metric.startswith("latency") else decide


def _of_champion(champion: Measurements, metric: str) -> float:
    try:
        return champion.number(metric)
    except MissingNumberError as missing:
        raise MissingNumberError(f"the champion: {missing}") from None


def _confidence(
    candidate: Measurements,
    champion: Measurements,
    metric: str,
    higher_is_better: bool,
    margin: float,
    confidence: float | None,
) -> tuple[bool, str]:
    """Whether the loss is shown to be within the margin, and in words how sure that is."""
    ours, theirs = candidate.per_sample.get(metric), champion.per_sample.get(metric)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return False, "not measured sample by sample, so nothing is known about chance"
    losses = np.asarray(theirs, float) - np.asarray(ours, float)
    if not np.isin(ours, (0, 1)).all() or not np.isin(theirs, (0, 1)).all():
        losses = losses if higher_is_better else -losses
        level = confidence or 0.95
        bound = bootstrap_bound(losses, level)
        how = f"loss below {bound:.4g} with {level:.0%} confidence (paired bootstrap)"
        return bound <= margin + _ROUNDING, how
    losses = losses if higher_is_better else -losses
    worse, better = int((losses > 0).sum()), int((losses < 0).sum())
    chance = exact_mcnemar(worse, better)
    how = f"of {losses.size} samples {worse} lost and {better} won (exact McNemar p = {chance:.3g})"
    if confidence is None:
        return True, how
    inferior = score_test(worse, better, losses.size, margin)
    return inferior <= 1 - confidence, f"{how}, score test of the margin p = {inferior:.3g}"
