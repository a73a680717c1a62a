"""Gates: conditions for a candidate. Any function of the same signature is a gate too.

A gate receives the measurements of the candidate and of the champion (None if there is no champion
yet) and returns a verdict. Without a champion, a gate that compares passes if the candidate's own
numbers are there: a first version has to pass its floors only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlflow_keras_adv.registry.paired import bootstrap_bound, exact_mcnemar, score_test
from mlflow_keras_adv.registry.samples import Measurements, MissingNumberError
from mlflow_keras_adv.tracking.directions import AskedMode, direction

_NO_CHAMPION = "no champion to compare with"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """The verdict of a gate.

    Attributes:
        passed: Whether the candidate passes.
        reason: The numbers, in words.
    """

    passed: bool
    reason: str


Gate = Callable[[Measurements, Measurements | None], Verdict]


@dataclass(frozen=True)
class Judged:
    """A verdict, with the title of its gate.

    Attributes:
        gate: The title.
        passed: Whether the candidate passes.
        reason: The numbers, in words.
    """

    gate: str
    passed: bool
    reason: str


def judge(gate: Gate, candidate: Measurements, champion: Measurements | None) -> Judged:
    """Calls a gate. It fails if a number is missing, or if it raises an error."""
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
        title: The condition in words.
        decide: The gate itself.
        on_record: The part of it that can be decided by recorded numbers of a model.
    """

    title: str
    decide: Gate
    on_record: Gate | None = None

    def __call__(self, candidate: Measurements, champion: Measurements | None) -> Verdict:
        """Asks it."""
        return self.decide(candidate, champion)


def floor(metric: str, at_least: float) -> Gate:
    """Passes if a metric of the candidate is not below a limit.

    Args:
        metric: Its name: `accuracy`, of a model with several outputs `<output>/<metric>`.
        at_least: The limit.

    Returns:
        The gate, for `promote(gates=[...])`.
    """

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        value = candidate.number(metric)
        return Verdict(value >= at_least, f"{value:.6g}")

    return ReadyMade(f"{metric} at least {at_least:.6g}", decide, _recordable(metric, decide))


def ceiling(metric: str, at_most: float) -> Gate:
    """Passes if a metric of the candidate is not above a limit.

    Args:
        metric: Its name: `mae`, of a model with several outputs `<output>/<metric>`.
        at_most: The limit.

    Returns:
        The gate, for `promote(gates=[...])`.
    """

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        value = candidate.number(metric)
        return Verdict(value <= at_most, f"{value:.6g}")

    return ReadyMade(f"{metric} at most {at_most:.6g}", decide, _recordable(metric, decide))


def non_inferiority(
    metric: str | None = None,
    margin: float = 0.01,
    *,
    relative: bool = False,
    mode: AskedMode = "auto",
    confidence: float | None = None,
) -> Gate:
    """Passes if the candidate is worse than the champion by no more than a margin.

    Where both were measured sample by sample, the verdict says how sure that is: for right and
    wrong answers by the exact, one-sided test of McNemar, for other numbers by a paired bootstrap.

    Args:
        metric: A metric that both have, `<output>/<metric>` for several outputs. Default: the
            deciding metric of the candidate: the accuracy of a classifier, else the first metric
            that it was compiled with, else its loss.
        margin: The loss that is accepted, in the unit of the metric; 0 or more.
        relative: Whether the margin is a share of the champion's value.
        mode: Whether the metric is better when it is lower ("min") or higher ("max"). Default: as
            Keras defines it, or by its name; if neither tells, the gate fails and says so.
        confidence: From 0.5 to below 1, such as 0.95: the loss must be within the margin with this
            confidence, by the score test of Tango (1998) or by the bound of the bootstrap, and not
            only as measured. On few samples only a candidate that is clearly not worse passes.
            Without paired numbers the gate fails.

    Returns:
        The gate, for `promote(gates=[...])`.

    Raises:
        ValueError: A margin below 0, a confidence outside of its range, or another mode.
    """
    if not 0 <= margin < float("inf"):
        raise ValueError(f"margin: received {margin}, expected 0 or more.")
    if confidence is not None and not 0.5 <= confidence < 1:
        raise ValueError(
            f"confidence: received {confidence}, expected at least 0.5 and below 1, such as 0.95."
        )
    if mode not in ("min", "max", "auto"):
        raise ValueError(f"mode: received {mode!r}, expected 'min', 'max' or 'auto'.")

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        name = (
            metric or candidate.deciding or ("accuracy" if "accuracy" in candidate.metrics else "")
        )
        if not name:
            candidate.number("loss")  # says what there is, or what went wrong
            raise MissingNumberError("no metric decides about it; name one")
        value = candidate.number(name)
        said = f"{value:.6g}" if metric else f"{name} {value:.6g}"
        if champion is None:
            return Verdict(True, f"{said}; {_NO_CHAMPION}")
        before = _of_champion(champion, name)
        rising = _rises(candidate, name, mode)
        loss = before - value if rising else value - before
        allowed = margin * abs(before) if relative else margin
        shown, how = _confidence(candidate, champion, name, rising, allowed, confidence)
        passed = loss <= allowed + _ROUNDING and (shown or confidence is None)
        return Verdict(passed, f"{said} after {before:.6g}; {how}")

    surely = "" if confidence is None else f", with {confidence:.0%} confidence"
    most = f"{margin * 100:.4g} %" if relative else f"{margin:.6g}"
    subject = metric or "the deciding metric"
    return ReadyMade(f"{subject} worse by at most {most}{surely}", decide)


def per_slice(gate: Gate, column: str) -> Gate:
    """Passes if a gate passes in each group of samples.

    Args:
        gate: Any gate, such as `non_inferiority("recall", 0.02)`.
        column: One of the samples' `slices`, by whose values the samples are grouped.

    Returns:
        The gate, for `promote(gates=[...])`.
    """

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        if candidate.problem:
            raise MissingNumberError(f"it could not be measured: {candidate.problem}")
        groups = [key for key in candidate.slices if key.startswith(f"{column}=")]
        if not groups:
            known = ", ".join(sorted({key.partition("=")[0] for key in candidate.slices}))
            raise MissingNumberError(
                f"nothing was measured by {column!r}, but by {known or 'no column'}: give the "
                "samples slices={…}"
            )
        if champion is not None and champion.problem:
            raise MissingNumberError(f"the champion: it could not be measured: {champion.problem}")
        said = []
        for key in groups:
            other = None if champion is None else champion.slices.get(key, Measurements())
            asked = judge(gate, candidate.slices[key], other)
            count = candidate.slices[key].samples
            said.append((asked.passed, f"{key} ({count} samples): {asked.reason}"))
        failed = [text for passed, text in said if not passed]
        return Verdict(not failed, "; ".join(failed or [text for _, text in said]))

    title = getattr(gate, "title", "") or getattr(gate, "__name__", "") or repr(gate)
    return ReadyMade(f"in each {column}: {title}", decide)


def budget(
    *,
    max_size_bytes: float | None = None,
    max_latency_ratio: float | None = None,
    max_flops: float | None = None,
) -> Gate:
    """Passes if size, latency and FLOPs of the candidate are within limits.

    Args:
        max_size_bytes: Largest size of its file, in bytes.
        max_latency_ratio: Largest median latency relative to the champion's, both measured in
            turns, in one process.
        max_flops: Largest number of floating-point operations of a forward pass of one sample; a
            multiply-add counts as 2. For a quantized file they are integer operations.

    Returns:
        The gate, for `promote(gates=[...])`.

    Raises:
        ValueError: None is given.
    """
    absolute = {"size_bytes": (max_size_bytes, "bytes"), "flops": (max_flops, "FLOPs")}
    absolute = {key: limit for key, limit in absolute.items() if limit[0] is not None}
    if not absolute and max_latency_ratio is None:
        raise ValueError("budget needs max_size_bytes=, max_latency_ratio= or max_flops=.")

    def itself(candidate: Measurements, _: Measurements | None) -> Verdict:
        """The part that needs no champion."""
        verdicts = []
        for key, (limit, unit) in absolute.items():
            taken = candidate.number(key)
            verdicts.append(Verdict(limit is None or taken <= limit, f"{taken:.0f} {unit}"))
        return Verdict(all(v.passed for v in verdicts), ", ".join(v.reason for v in verdicts))

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        verdicts = [itself(candidate, champion)] if absolute else []
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
        "at most {:.0f} FLOPs": max_flops,
    }
    title = ", ".join(text.format(limit) for text, limit in limits.items() if limit is not None)
    return ReadyMade(title, decide, itself if absolute else None)


def agreement(at_least: float) -> Gate:
    """Passes if candidate and champion agree on a share of the samples.

    For classifiers. For other models see `difference`.

    Args:
        at_least: The share, from 0 to 1.

    Returns:
        The gate, for `promote(gates=[...])`.
    """

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        return _common("agreement", candidate, champion, lambda share: share >= at_least)

    return ReadyMade(f"agrees with the champion on at least {at_least:.6g}", decide)


def difference(at_most: float, *, largest: bool = False) -> Gate:
    """Passes if the outputs of candidate and champion differ by no more than a limit.

    Args:
        at_most: Largest root mean square difference, relative to the root mean square of the
            champion's outputs; of several outputs the worst counts.
        largest: Largest difference of any number, relative to the champion's largest.

    Returns:
        The gate, for `promote(gates=[...])`.
    """
    name = "difference_max" if largest else "difference"

    def decide(candidate: Measurements, champion: Measurements | None) -> Verdict:
        return _common(name, candidate, champion, lambda apart: apart <= at_most)

    kind = "the champion's largest output" if largest else "the champion's outputs"
    return ReadyMade(f"differs by at most {at_most:.6g} of {kind}", decide)


def same_dataset() -> Gate:
    """Passes if the samples are those on which the model's run has recorded its `final/…`.

    Other samples might be among those that the candidate was trained on.

    Returns:
        The gate, for `promote(gates=[...])`.
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
    """Passes if a new process can load the candidate and predict for its input example.

    Returns:
        The gate, for `promote(gates=[...])`.
    """

    def decide(candidate: Measurements, _: Measurements | None) -> Verdict:
        if candidate.problem or candidate.serve is None:
            raise MissingNumberError(candidate.problem or "nobody has tried to serve it")
        problem = candidate.serve()
        return Verdict(not problem, problem or "it answers its input example")

    return ReadyMade("loads and serves", decide)


def _recordable(metric: str, decide: Gate) -> Gate | None:
    # Times of another machine and day say nothing about now.
    return None if metric.startswith("latency") else decide


def _common(
    name: str,
    candidate: Measurements,
    champion: Measurements | None,
    passes: Callable[[float], bool],
) -> Verdict:
    if candidate.problem:
        raise MissingNumberError(f"it could not be measured: {candidate.problem}")
    if champion is None:
        return Verdict(True, _NO_CHAMPION)
    if champion.problem:
        raise MissingNumberError(f"the champion: {champion.problem}")
    value = candidate.common(name)
    return Verdict(passes(value), f"{value:.6g}")


def _rises(candidate: Measurements, metric: str, mode: str) -> bool:
    """Whether a higher value of a metric is better."""
    known = direction(metric, candidate.directions) if mode == "auto" else mode
    if known is None:
        raise MissingNumberError(
            f"it is not known which way {metric!r} is better: give mode='min' or mode='max'"
        )
    return known == "max"


def _of_champion(champion: Measurements, metric: str) -> float:
    try:
        return champion.number(metric)
    except MissingNumberError as missing:
        raise MissingNumberError(f"the champion: {missing}") from None


def _confidence(
    candidate: Measurements,
    champion: Measurements,
    metric: str,
    rising: bool,
    margin: float,
    confidence: float | None,
) -> tuple[bool, str]:
    """Whether the loss is within the margin with the confidence, and the statistics in words."""
    ours, theirs = candidate.per_sample.get(metric), champion.per_sample.get(metric)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return False, "not measured sample by sample, so nothing is known about chance"
    losses = np.asarray(theirs, float) - np.asarray(ours, float)
    losses = losses if rising else -losses
    weights = candidate.weights.get(metric, np.ones(len(losses)))
    alike = np.ptp(weights) == 0
    if not alike or not np.isin(ours, (0, 1)).all() or not np.isin(theirs, (0, 1)).all():
        level = confidence or 0.95
        bound = bootstrap_bound(losses, level, None if alike else weights)
        how = f"loss below {bound:.4g} with {level:.0%} confidence (paired bootstrap)"
        return bound <= margin + _ROUNDING, how
    worse, better = int((losses > 0).sum()), int((losses < 0).sum())
    chance = exact_mcnemar(worse, better)
    how = (
        f"only the champion is right on {worse} of {losses.size} samples, only the candidate on "
        f"{better} (is the candidate worse? one-sided exact McNemar test: p = {chance:.3g})"
    )
    if confidence is None:
        return True, how
    inferior = score_test(worse, better, losses.size, margin)
    return inferior <= 1 - confidence, f"{how}, score test of the margin p = {inferior:.3g}"
