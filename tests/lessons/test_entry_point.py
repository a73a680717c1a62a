"""Real processes where the exit code counts; no TensorFlow anywhere."""

import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import mlflow
import pytest
from pydantic import Field, PositiveInt

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.lessons import entry_point

ROOT = Path(__file__).parents[2]

SCRIPT = '''
import json
import time
from typing import Annotated
from pydantic import Field, PositiveInt
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.errors import UserError

def main(
    data: str = "digits",
    epochs: PositiveInt = 20,
    batch_size: PositiveInt = 64,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    offset: float = 0.0,
) -> None:
    """Prints what it got.

    Args:
        data: What to do: `user error`, `bug`, `wait`, or print it.
    """
    if data == "user error":
        raise UserError("got a spoon,\\nexpected a fork; take a fork")
    if data == "bug":
        raise KeyError("a bug")
    if data == "wait":
        print("ready", flush=True)
        time.sleep(60)
    print(json.dumps(locals()))

if __name__ == "__main__":
    entry_point.run(main)
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def call(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


class Called:
    """What `main` got."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def main(
        self,
        epochs: PositiveInt = 20,
        batch_size: PositiveInt = 64,
        lr: Annotated[float, Field(gt=0)] = 1e-3,
        seed: int = 0,
        offset: float = 0.0,
        shuffle: bool = True,
        optimizer: Literal["adam", "sgd"] = "adam",
        data: str = "digits",
    ) -> None:
        """Trains."""
        self.values = {name: value for name, value in locals().items() if name != "self"}


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--epochs", "3"], "epochs", 3),
        (["--epochs=3"], "epochs", 3),
        (["--epochs", "2.0"], "epochs", 2),
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch_size", "8"], "batch_size", 8),
        (["--batch_size=8"], "batch_size", 8),
        (["--lr", "1e-3"], "lr", 0.001),
        (["--lr", "2"], "lr", 2.0),
        (["--seed", "-1"], "seed", -1),
        (["--offset", "-1e-3"], "offset", -0.001),
        (["--offset=-1e-3"], "offset", -0.001),
        (["--shuffle", "true"], "shuffle", True),
        (["--shuffle", "False"], "shuffle", False),
        (["--optimizer", "sgd"], "optimizer", "sgd"),
        (["--data", ""], "data", ""),
        (["--data", "my file.npz"], "data", "my file.npz"),
        (["--data", "-x.npz"], "data", "-x.npz"),
        (["--data", "a=b_c"], "data", "a=b_c"),
    ],
)
def test_a_value_reaches_main_in_the_type_of_its_annotation(
    arguments: list[str], name: str, value: object
) -> None:
    called = Called()

    entry_point.run(called.main, arguments)

    defaults = {p.name: p.default for p in entry_point.parameters(called.main)}
    assert called.values == defaults | {name: value}
    assert type(called.values[name]) is type(value)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("epochs=abc", "epochs: got 'abc', which should be a valid integer;"),
        ("epochs=2.5", "epochs: got '2.5', which should be a valid integer;"),
        ("epochs=0", "epochs: got '0', which should be greater than 0;"),
        ("lr=nan", "lr: got 'nan', which should be a finite number;"),
        ("lr=inf", "lr: got 'inf', which should be a finite number;"),
        ("offset=-inf", "offset: got '-inf', which should be a finite number;"),
        ("shuffle=perhaps", "shuffle: got 'perhaps', which should be a valid boolean;"),
        ("optimizer=lion", "optimizer: got 'lion', which should be 'adam' or 'sgd';"),
        ("seed=", "seed: got '', which should be a valid integer;"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_a_good_one(
    argument: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called()

    with pytest.raises(SystemExit) as exit_:
        entry_point.run(called.main, [f"--{argument}"])

    assert exit_.value.code == 2
    assert called.values == {}
    default = inspect.signature(called.main).parameters[argument.partition("=")[0]].default
    advice = f"give another value, for example the default {default}"
    assert capsys.readouterr().err == f"error: {sentence} {advice}\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--epochs", "abc"], ["epochs"]),
        (["--epochs", "0"], ["epochs"]),
        (["--temperature", "0"], ["temperature"]),
        (["--alpha", "2"], ["alpha"]),
        (["--epochs", "0", "--lr", "nan", "--alpha", "-1"], ["epochs", "lr", "alpha"]),
    ],
)
def test_a_process_with_bad_values_says_one_line_for_each_and_exits_with_2(
    script: Path, arguments: list[str], names: list[str]
) -> None:
    done = call(script, *arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    assert re.findall(r"^error: (\w+): ", done.stderr, re.MULTILINE) == names
    assert len(done.stderr.splitlines()) == len(names)


def test_a_user_error_in_main_is_one_line_and_exits_with_1(script: Path) -> None:
    done = call(script, "--data", "user error")

    assert done.returncode == 1
    assert done.stderr == "error: got a spoon, expected a fork; take a fork\n"


def test_a_bug_in_main_shows_its_traceback(script: Path) -> None:
    done = call(script, "--data", "bug")

    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("KeyError: 'a bug'\n")


def test_ctrl_c_ends_with_one_line_and_130(script: Path) -> None:
    command = [sys.executable, str(script), "--data", "wait"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors == "interrupted\n"


def test_an_exit_of_main_passes() -> None:
    def main() -> None:
        sys.exit(7)

    with pytest.raises(SystemExit) as exit_:
        entry_point.run(main, [])

    assert exit_.value.code == 7


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["--momentum=1"], ["digits"], ["-x"]])
def test_an_unknown_argument_is_refused_with_the_parameters_that_exist(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called()

    with pytest.raises(SystemExit) as exit_:
        entry_point.run(called.main, arguments)

    assert exit_.value.code == 2
    assert called.values == {}
    errors = capsys.readouterr().err
    assert f"unrecognized arguments: {' '.join(arguments)}; the parameters are: " in errors
    assert errors.endswith("epochs, batch_size, lr, seed, offset, shuffle, optimizer, data\n")


@pytest.mark.parametrize("arguments", [["--lr"], ["--lr", "--data", "x"]])
def test_an_option_without_its_value_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        entry_point.run(Called().main, arguments)

    assert exit_.value.code == 2
    assert "argument --lr: expected one argument" in capsys.readouterr().err


def test_a_parameter_without_a_default_has_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    got = []

    def main(run_id: Annotated[str, Field(min_length=1)]) -> None:
        got.append(run_id)

    entry_point.run(main, ["--run_id", "abc"])
    assert got == ["abc"]

    with pytest.raises(SystemExit) as exit_:
        entry_point.run(main, [])
    assert exit_.value.code == 2
    assert "the following arguments are required: --run-id" in capsys.readouterr().err

    with pytest.raises(SystemExit):
        entry_point.run(main, ["--run-id="])
    expected = "error: run_id: got '', which should have at least 1 character; give another value\n"
    assert capsys.readouterr().err == expected


def documented(
    data: str = "digits", batch_size: "PositiveInt" = 64, *, alpha: float = 0.5, seed: int = 0
) -> None:
    """Keeps 100 % of it.

    More about it.

    Args:
        data: What to load: `digits`
            or a file.
        batch_size (int): Images a step,
            80 % of them new.
        alpha: From 0 to 1.

    Raises:
        UserError: seed: never.
    """


def test_parameters_are_what_the_signature_and_the_docstring_say() -> None:
    assert entry_point.parameters(documented) == [
        entry_point.Parameter("data", str, "digits", "What to load: `digits` or a file."),
        entry_point.Parameter("batch_size", PositiveInt, 64, "Images a step, 80 % of them new."),
        entry_point.Parameter("alpha", float, 0.5, "From 0 to 1."),
        entry_point.Parameter("seed", int, 0, ""),
    ]


@pytest.mark.quick
def test_help_shows_summary_descriptions_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        entry_point.run(documented, ["--help"])

    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Keeps 100 % of it. options:" in text
    assert "--data DATA What to load: `digits` or a file. (default: digits)" in text
    assert "--batch-size BATCH_SIZE Images a step, 80 % of them new. (default: 64)" in text
    assert "--seed SEED (default: 0)" in text
    assert "batch_size" not in text


def test_a_module_that_runs_as_main_is_called_by_its_own_name(script: Path) -> None:
    command = [sys.executable, "-m", script.stem, "--help"]
    done = subprocess.run(
        command, cwd=script.parent, env=environment(), capture_output=True, text=True, timeout=60
    )

    assert done.stdout.startswith("usage: python -m script [-h]")


def unannotated(epochs=1):
    raise AssertionError


def positional(epochs: int, /) -> None:
    raise AssertionError


def gathering(*epochs: int) -> None:
    raise AssertionError


@pytest.mark.parametrize("main", [unannotated, positional, gathering])
def test_a_signature_that_no_option_can_express_is_a_type_error(main: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match="epochs"):
        entry_point.run(main, [])


def test_a_user_error_keeps_its_exit_code_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("no")

    with pytest.raises(SystemExit) as exit_:
        entry_point.run(main, [])

    assert exit_.value.code == 1
    assert capsys.readouterr().err == "error: no\n"


def test_what_wants_an_extra_that_is_not_there_is_not_begun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def main(epochs: PositiveInt = 1) -> None:
        begun.append(epochs)

    entry_point.run(main, [], extra="rl")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    for arguments, code in ((["--help"], 0), (["--epochs", "0"], 2), ([], 1)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            entry_point.run(main, arguments, extra="rl")
        assert exit_.value.code == code

    assert begun == [1]
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: gymnasium is not installed; ")
    assert line.endswith('pip install "mlflow-keras-adv[rl]"')


@pytest.mark.parametrize("data", ['it\'s a "quoted" $HOME', ""])
def test_what_mlflow_run_is_given_reaches_main(
    script: Path, experiment: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script.parent / "MLproject").write_text(
        "name: quoting\n"
        "entry_points:\n"
        "  main:\n"
        "    parameters:\n"
        "      data: {type: string, default: digits}\n"
        "    command: python script.py --data {data} > out.json\n"
    )
    # Undeclared parameters are appended, here behind the redirection, as arguments still.
    undeclared = {"batch_size": "8", "offset": "-1e-3"}
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    mlflow.projects.run(
        str(script.parent),
        parameters={"data": data} | undeclared,
        experiment_id=experiment,
        env_manager="local",
    )

    got = mlflow.artifacts.load_dict((script.parent / "out.json").as_uri())
    assert (got["data"], got["batch_size"], got["offset"]) == (data, 8, -0.001)


def test_a_description_is_in_the_docstring_or_in_the_annotation() -> None:
    Size = Annotated[PositiveInt, Field(description="Samples per step.")]  # noqa: N806

    def main(size: Size = 2, other: Size = 3, plain: int = 1) -> None:
        """Runs.

        Args:
            other: Something else.
        """

    found = {each.name: each.description for each in entry_point.parameters(main)}
    assert found == {"size": "Samples per step.", "other": "Something else.", "plain": ""}


def test_a_command_gives_a_script_its_parameters() -> None:
    called = Called()
    program, option, module, *arguments = entry_point.command(
        "projects.tune", {"batch_size": 8, "data": "", "shuffle": False}
    )

    assert (program, option, module) == (sys.executable, "-m", "projects.tune")
    entry_point.run(called.main, arguments)
    given = {name: called.values[name] for name in ("batch_size", "data", "shuffle")}
    assert given == {"batch_size": 8, "data": "", "shuffle": False}
