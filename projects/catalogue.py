"""Writes the tables and pictures of the catalogue from the measurements of runs.

For each entry point of MLproject the newest finished run with the default parameters is looked up
in the store. docs/techniques.md gets a row for each, projects/README.md all claims and a picture,
which is a figure of that run. They are written between two markers; the rest of the files is
unchanged.

    MLFLOW_TRACKING_URI=sqlite:///mlflow.db python -m projects.catalogue
"""

import ast
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

import mlflow_keras_adv as mka
from mlflow_keras_adv.comparison.report import learning_curves
from mlflow_keras_adv.lessons import entry_point

ROOT = Path(__file__).parent.parent
PICTURES = "docs/images/gallery"
BEGIN, END = "<!-- catalogue: written by python -m projects.catalogue -->", "<!-- end -->"
LARGEST_BYTES, LARGEST_SIDE = 60_000, 900
BAR = r"\|"  # one that does not end the cell
PACE = ("epoch", "examples_per_second", "step_ms")


@dataclass(frozen=True)
class Entry:
    """An entry point and the run that shows it.

    Attributes:
        name: Name of the entry point.
        lesson: The first line of its script.
        run: The newest finished run with the default parameters, or None.
        claims: Claims of the run.
    """

    name: str
    lesson: str
    run: Run | None
    claims: tuple[mka.Claim, ...]

    @property
    def duration(self) -> str:
        """How long the run took, about."""
        if self.run is None:
            return ""
        seconds = (self.run.info.end_time - self.run.info.start_time) / 1000
        return f"{10 * max(1, round(seconds / 10)):.0f} s" if seconds < 95 else minutes(seconds)


def minutes(seconds: float) -> str:
    """In halves of a minute: "1.5 min"."""
    return f"{round(seconds / 30) / 2:g} min"


def entries(experiments: Iterable[str], root: Path = ROOT) -> list[Entry]:
    """Every entry point of MLproject, in its order; `main` first."""
    declared = yaml.safe_load((root / "MLproject").read_text())["entry_points"]
    names = sorted(declared, key=lambda name: (name != "main", name))
    found = []
    for name in names:
        parsed = ast.parse((root / "projects" / f"{name}.py").read_text())
        lesson = (ast.get_docstring(parsed) or "").splitlines()[0]
        defaults = {key: each["default"] for key, each in declared[name]["parameters"].items()}
        run = newest(name, defaults, experiments)
        claims = () if run is None else claims_of(run)
        found.append(Entry(name, lesson, run, claims))
    return found


def newest(name: str, defaults: dict[str, object], experiments: Iterable[str]) -> Run | None:
    """The newest finished run of a technique with these parameters."""
    wanted = f"tags.technique = '{name}' AND attributes.status = 'FINISHED'"
    runs = MlflowClient().search_runs(list(experiments), wanted, order_by=["start_time DESC"])
    for run in runs:
        given = run.data.params
        if "mlflow.parentRunId" not in run.data.tags and all(
            same(given.get(key), value) for key, value in defaults.items()
        ):
            return run
    return None


def same(recorded: str | None, default: object) -> bool:
    """Whether a parameter on record is the default; `mlflow run` quotes an empty text."""
    if isinstance(default, bool):
        return (recorded or "").lower() == str(default).lower()
    if isinstance(default, (int, float)) and recorded:
        return float(recorded) == default
    return (recorded or "").replace("''", "") == default


def claims_of(run: Run) -> tuple[mka.Claim, ...]:
    """Those on record; none for a script that claims nothing."""
    return tuple(mka.logged_claims(run.info.run_id)) if "claims" in run.data.tags else ()


def row(entry: Entry) -> str:
    """One line of the table in docs/techniques.md."""
    cells = [f"`{entry.name}`", entry.lesson.rstrip("."), entry.duration]
    if entry.claims:
        first, *_ = entry.claims
        hold = sum(claim.holds for claim in entry.claims)
        cells += [f"{first.text}: {first.tolerance}", f"{first.value:.3g}"]
        cells += [f"{hold} of {len(entry.claims)}"]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def table(found: Iterable[Entry]) -> str:
    """The table in docs/techniques.md."""
    head = "| entry point | what it shows | takes | its first claim | measured | claims that hold |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(row, found)])


def section(entry: Entry, picture: str | None) -> str:
    """What projects/README.md says of an entry point."""
    parts = [f"## {entry.name}", f"{entry.lesson} [The lesson]({entry.name}.py)"]
    if entry.run is not None:
        parts.append(entry.run.data.tags.get("mlflow.note.content", "").splitlines()[0])
    if picture:
        parts.append(f"![A figure of a run of {entry.name}]({picture})")
    if entry.claims:
        parts.append("\n".join(f"- {claim}" for claim in entry.claims))
    return "\n\n".join(part for part in parts if part)


def picture_of(run: Run) -> Image.Image | None:
    """The run's own figure; of several the one beside the learning curves, which all have."""
    run_id, client = run.info.run_id, MlflowClient()
    names = [file.path for file in client.list_artifacts(run_id) if file.path.endswith(".png")]
    own = [name for name in names if name != "learning_curves.png"]
    if names:
        return opened(run_id, min(own or names))
    logged = [f.path for f in client.list_artifacts(run_id, "images") if f.path.endswith(".png")]
    parts = [re.match(r"(.*?)[%+]step[%+](\d+)", name) for name in logged]  # as MLflow calls them
    found = {(part[1], int(part[2])): part.string for part in parts if part}
    if found:
        first = min(key for key, _ in found)
        return opened(run_id, found[max(place for place in found if place[0] == first)])
    keys = (key.removeprefix("train/") for key in run.data.metrics if key.startswith("train/"))
    curves = [f"train/{key}" for key in sorted(keys) if key not in PACE][:3]
    return drawn(learning_curves({run.data.tags["technique"]: run_id}, curves)) if curves else None


def opened(run_id: str, name: str) -> Image.Image:
    """A picture among the artifacts of a run."""
    with Image.open(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{name}")) as picture:
        return picture.convert("RGB")


def drawn(figure: Figure) -> Image.Image:
    """A figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def shrunk(picture: Image.Image) -> bytes:
    """The picture as a PNG of at most `LARGEST_BYTES`, with fewer colours, then smaller."""
    for side in (LARGEST_SIDE, 700, 500, 300):
        smaller = picture.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        for colours in (256, 64):
            file = io.BytesIO()
            smaller.quantize(colours, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
            if file.tell() <= LARGEST_BYTES:
                return file.getvalue()
    raise ValueError(f"A picture of {picture.size} pixels cannot be made as small as that.")


def between_markers(file: Path, text: str) -> None:
    """Replaces what stands between the markers.

    Raises:
        mka.UserError: The file does not have both of them once.
    """
    before = file.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(before)) != 1:
        raise mka.UserError(f"{file}: expected one pair of {BEGIN!r} and {END!r}; put it back")
    file.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", before))


def write(experiment: str = "Default", folder: str = str(ROOT)) -> None:
    """Writes the table of techniques, the gallery page and its pictures.

    Args:
        experiment: Name of the experiment in which the runs are.
        folder: The project.
    """
    known = MlflowClient().get_experiment_by_name(experiment)
    if known is None:
        raise mka.UserError(
            f"experiment: got {experiment!r}, which {mlflow.get_tracking_uri()} does not have; "
            "give the one that the entry points have run in"
        )
    root = Path(folder)
    found = entries([known.experiment_id], root)
    sections = []
    for entry in found:
        picture = None if entry.run is None else picture_of(entry.run)
        name = f"{PICTURES}/{entry.name}.png"
        if picture is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(shrunk(picture))
        sections.append(section(entry, f"../{name}" if picture is not None else None))
    between_markers(root / "docs" / "techniques.md", table(found))
    between_markers(root / "projects" / "README.md", "\n\n".join(sections))
    absent = [entry.name for entry in found if entry.run is None]
    print(f"{len(found) - len(absent)} entry points; no run with the defaults: {absent or 'none'}")


if __name__ == "__main__":
    entry_point.run(write)
