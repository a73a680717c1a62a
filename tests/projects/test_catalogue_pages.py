"""What `python -m projects.catalogue` writes, from runs that only log."""

import io
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

import mlflow_keras_adv as mka
from projects import catalogue

ROOT = Path(__file__).parent.parent.parent
CLAIMS = (
    mka.Claim("gain", "accuracy gained | lost", 0.123456, at_least=0.1),
    mka.Claim("difference", "difference of a weight", 0.5, at_most=0.0),
)
MARKED = f"before\n{catalogue.BEGIN}\nold\n{catalogue.END}\nafter\n"


def red() -> np.ndarray:
    return np.tile(np.array([255, 0, 0], np.uint8), (20, 30, 1))


def run_of(name: str, *, fails: bool = False, **params: object) -> str:
    try:
        with mka.track(
            name, params=params, tags={"technique": name}, log_system_metrics=False
        ) as run:
            mka.log_claims(*CLAIMS)
            run.log_metrics({"train/loss": 1.0, "train/epoch": 1.0}, step=1)
            run.describe("It gains.\n\nAnd more.")
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    return run.run_id


@pytest.fixture
def project(tmp_path: Path) -> Path:
    parameters = {
        "lr": {"type": "float", "default": 0.001},
        "epochs": {"type": "int", "default": 3},
        "model_uri": {"type": "string", "default": ""},
        "quantize": {"type": "bool", "default": False},
    }
    points = {name: {"parameters": parameters} for name in ("absent", "toy", "main")}
    (tmp_path / "MLproject").write_text(yaml.safe_dump({"entry_points": points}))
    for folder in ("docs", "projects"):
        (tmp_path / folder).mkdir()
    for name in points:
        (tmp_path / f"projects/{name}.py").write_text(f'"""What {name} shows.\n\nMore.\n"""\n')
    for page in ("docs/techniques.md", "projects/README.md"):
        (tmp_path / page).write_text(MARKED)
    return tmp_path


def test_pages_hold_the_newest_finished_run_with_the_defaults(
    project: Path, experiment: str, client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("toy", lr=0.001, epochs=3, quantize=False, number=1)
    wanted = run_of("toy", lr="1e-3", epochs=3, model_uri="''", quantize="false", number=2)
    run_of("toy", lr=0.001, epochs=1, quantize=False)
    run_of("toy", lr=0.001, epochs=3, quantize=True)
    run_of("toy", lr=0.001, epochs=3, quantize=False, fails=True)

    first, _, toy = catalogue.entries([experiment], project)
    assert first.name == "main"
    assert first.run is None
    assert toy.run is not None
    assert toy.run.info.run_id == wanted

    catalogue.write(client.get_experiment(experiment).name, str(project))

    assert "['main', 'absent']" in capsys.readouterr().out
    page = (project / "docs" / "techniques.md").read_text()
    assert (page[:7], page[-7:]) == ("before\n", "\nafter\n")
    assert "\nold\n" not in page
    assert "| `main` | What main shows |  |  |  |  |" in page
    claimed = r"accuracy gained \| lost: at least 0.1"
    assert f"| `toy` | What toy shows | 10 s | {claimed} | 0.123 | 1 of 2 |" in page
    gallery = (project / "projects" / "README.md").read_text()
    assert "## toy\n\nWhat toy shows. [The lesson](toy.py)\n\nIt gains.\n" in gallery
    assert f"\n- {CLAIMS[0]}\n- {CLAIMS[1]}\n" in gallery
    (link,) = re.findall(r"!\[.*\]\((.*)\)", gallery)
    assert (project / "projects" / link).stat().st_size <= catalogue.LARGEST_BYTES

    catalogue.write(client.get_experiment(experiment).name, str(project))
    assert (project / "docs" / "techniques.md").read_text() == page


def test_the_picture_is_the_figure_that_is_the_runs_own(experiment: str) -> None:
    with mka.track("pictures", tags={"technique": "x"}, log_system_metrics=False) as run:
        run.log_figure(Figure(), "learning_curves.png")
        run.log_image(np.zeros((9, 9, 3), np.uint8), key="samples", step=100)
        run.log_image(red(), key="samples", step=20)
    with mka.track("images", tags={"technique": "x"}, log_system_metrics=False) as images:
        images.log_image(np.zeros((9, 9, 3), np.uint8), key="samples", step=20)
        images.log_image(red(), key="samples", step=100)
    with mka.track("own", tags={"technique": "x"}, log_system_metrics=False) as own:
        own.log_figure(Figure(), "learning_curves.png")
        own.log_image(red(), key="samples", step=1)
        own.log_figure(Figure(figsize=(1, 1), dpi=50), "embeddings.png")

    sizes = [catalogue.picture_of(mlflow.get_run(each.run_id)).size for each in (run, images, own)]

    whole, last, small = sizes
    assert whole[0] > 100
    assert last == (30, 20)
    assert small == (50, 50)


def test_a_picture_that_cannot_be_compressed_becomes_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (510, 510, 3), np.uint8)

    content = catalogue.shrunk(Image.fromarray(noise))

    assert len(content) <= catalogue.LARGEST_BYTES
    assert max(Image.open(io.BytesIO(content)).size) < 510


def test_without_its_markers_a_page_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("mine\n")

    with pytest.raises(mka.UserError, match="expected one pair"):
        catalogue.between_markers(page, "theirs")
    assert page.read_text() == "mine\n"


def test_the_table_has_a_row_for_each_entry_point() -> None:
    page = (ROOT / "docs" / "techniques.md").read_text()
    written = page.partition(catalogue.BEGIN)[2].partition(catalogue.END)[0]
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]

    assert sorted(re.findall(r"^\| `(\w+)` \|", written, re.MULTILINE)) == sorted(points)


def test_the_gallery_has_a_section_and_a_small_picture_for_each_entry_point() -> None:
    gallery = (ROOT / "projects" / "README.md").read_text()
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]

    assert sorted(re.findall(r"^## (\w+)$", gallery, re.MULTILINE)) == sorted(points)
    pictures = [ROOT / "projects" / link for link in re.findall(r"!\[.*?\]\((.*?)\)", gallery)]
    assert pictures
    assert [path for path in pictures if path.stat().st_size > catalogue.LARGEST_BYTES] == []
