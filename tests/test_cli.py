import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_keras_adv import cli
from mlflow_keras_adv.diagnostics import doctor
from mlflow_keras_adv.errors import UserError
from tests.mlflow_run import new_shell
from tests.mlflow_server import free_port


def test_importing_it_imports_neither_tensorflow_nor_mlflow() -> None:
    program = "import sys, mlflow_keras_adv.cli; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(shown.stdout.split())
    assert "click" in loaded
    assert not loaded & {"tensorflow", "keras", "mlflow"}


def test_the_command_line_of_a_user(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "mlflow-keras-adv"
    arguments = ["doctor", "--uri", f"http://127.0.0.1:{free_port()}"]
    said = subprocess.run(
        [command, *arguments], cwd=tmp_path, env=new_shell(), capture_output=True, text=True
    )
    assert said.returncode == 1
    assert "reach the store" in said.stdout
    assert "does not answer" in said.stdout
    assert "Traceback" not in said.stderr


def test_doctor_tries_the_configured_store(store: str, experiment: str) -> None:
    said = CliRunner().invoke(cli.main, ["doctor"])
    assert said.exit_code == 0, said.output
    assert store in said.output


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(UserError("say why"), 1, "Error: say why"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_errors_of_a_user_and_ctrl_c_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    said = CliRunner().invoke(cli.main, ["doctor"])
    assert said.exit_code == code
    assert said.stderr.strip() == message
