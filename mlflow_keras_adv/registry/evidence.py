"""Measurements and verdicts of a promotion, as JSON, as a page and as lines of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2

from mlflow_keras_adv.registry.gates import Judged
from mlflow_keras_adv.registry.samples import Measurements, Samples

_LONGEST = 500  # of one value on the page or in a line; the JSON file has the whole


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements and verdicts on which a promotion was decided.

    Attributes:
        name: Name of the registered model.
        candidate: URI of the candidate.
        version: Its version; empty in a dry run.
        champion: Version of the champion; empty if there is none.
        samples: The samples on which both were measured.
        measured: The measurements, by role: candidate, champion.
        facts: Run and sha256, by role.
        verdicts: The verdicts of the gates.
        reason: The reason that the author gave.
        who: The author.
        when: UTC, ISO 8601.
    """

    name: str
    candidate: str
    version: str
    champion: str
    samples: Samples
    measured: Mapping[str, Measurements]
    facts: Mapping[str, Mapping[str, str]]
    verdicts: Sequence[Judged]
    reason: str
    who: str
    when: str

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """How many gates passed, and which failed."""
        failed = [verdict.gate for verdict in self.verdicts if not verdict.passed]
        passed = f"{len(self.verdicts) - len(failed)} of {len(self.verdicts)} passed"
        return f"{passed}; failed: {', '.join(failed)}" if failed else passed

    @property
    def headline(self) -> str:
        """A line with the models that were compared and the samples."""
        against = f"champion, version {self.champion}" if self.champion else "no champion yet"
        version = f" (version {self.version})" if self.version else ""
        data = f"{self.samples.count} samples of {self.samples.name} ({self.samples.digest})"
        return f"{self.name}: {self.candidate}{version} against {against}, on {data}"

    def plain(self) -> dict[str, Any]:
        """The evidence as JSON values, with NaN and infinities as text."""
        return {
            "registered_model": self.name,
            "candidate": self.candidate,
            "version": self.version,
            "champion_version": self.champion,
            "dataset": {
                "name": self.samples.name,
                "digest": self.samples.digest,
                "samples": self.samples.count,
            },
            "passed": self.passed,
            "gates": [asdict(verdict) for verdict in self.verdicts],
            "models": {
                role: {
                    **self.facts.get(role, {}),
                    "problem": each.problem,
                    "recorded_on": sorted(each.recorded_on),
                    "unscored": each.unscored,
                    "metrics": {key: _number(value) for key, value in each.metrics.items()},
                    "beside": {key: _number(value) for key, value in each.beside.items()},
                    "slices": {
                        name: {
                            "samples": part.samples,
                            **{key: _number(value) for key, value in part.metrics.items()},
                        }
                        for name, part in each.slices.items()
                    },
                }
                for role, each in self.measured.items()
            },
            "reason": self.reason,
            "who": self.who,
            "when": self.when,
        }

    def lines(self) -> list[str]:
        """For a terminal: the comparison, then a line for each gate."""
        width = min(60, max((len(verdict.gate) for verdict in self.verdicts), default=0))
        rows = (
            f"{'pass' if verdict.passed else 'FAIL'}  {verdict.gate:<{width}}  {verdict.reason}"
            for verdict in self.verdicts
        )
        return [one_line(text) for text in (self.headline, *rows)]

    def markdown(self) -> str:
        """For the description of a run: a line of a list for each gate, as code."""
        rows = [
            one_line(f"{'pass' if each.passed else 'FAIL'} {each.gate}: {each.reason}")
            for each in self.verdicts
        ]
        return "\n".join(f"- `{row.replace('`', chr(39))}`" for row in rows)

    def page(self) -> str:
        """A page that opens from disk, without scripts and external resources."""
        keys = list(dict.fromkeys(key for each in self.measured.values() for key in each.metrics))
        metrics = [
            (key, *(_shown(each.metrics.get(key)) for each in self.measured.values()))
            for key in keys
        ]
        for name in dict.fromkeys(name for each in self.measured.values() for name in each.slices):
            parts = [each.slices.get(name, Measurements()) for each in self.measured.values()]
            for key in dict.fromkeys(part.deciding for part in parts if part.deciding):
                count = max(part.samples for part in parts)
                shown = (_shown(part.metrics.get(key)) for part in parts)
                metrics.append((f"{key}, {name} ({count} samples)", *shown))
        samples = self.samples
        facts = {
            "registered model": self.name,
            "candidate": f"{self.candidate} {self.version and f'version {self.version}'}",
            "champion": f"version {self.champion}" if self.champion else "none yet",
            "measured on": f"{samples.name}, {samples.digest}, {samples.count} samples",
            "why": self.reason or "-",
            "who": self.who,
            "when": self.when,
        }
        for role, known in self.facts.items():
            facts |= {f"{role}: {key}": value for key, value in known.items() if value}
        for role, each in self.measured.items():
            facts |= {f"{role}: problem": each.problem} if each.problem else {}
            facts |= {f"{role}: without scores": each.unscored} if each.unscored else {}
            facts |= {f"{role}: {key} beside": _shown(value) for key, value in each.beside.items()}
        return _template().render(
            name=self.name,
            passed=self.passed,
            facts=facts,
            gates=self.verdicts,
            models=list(self.measured),
            metrics=metrics,
        )


def one_line(text: str, longest: int = _LONGEST) -> str:
    """A text as one line of limited length, without control characters."""
    joined = " ".join(text.splitlines())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in joined)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _cell(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlflow_keras_adv", "registry"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("evidence.html.j2")
