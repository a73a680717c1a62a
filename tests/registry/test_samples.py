"""What models are measured on: checked, and known by a digest."""

from pathlib import Path

import numpy as np
import pytest

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry import Samples, read_samples

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0), "hold no samples"),
        ([], None, "hold no samples"),
        ({}, None, "hold no samples"),
        (np.float32(3), None, "hold no samples"),
        (X, Y[:3], "as many samples"),
        ([X, X[:2]], None, "as many samples"),
        ({"left": X, "right": X[:2]}, None, "as many samples"),
    ],
)
def test_what_cannot_be_measured_on_is_refused(x: object, y: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Samples(x, y)


def test_the_digest_is_of_all_that_is_measured_on() -> None:
    digests = {
        Samples(X, Y).digest,
        Samples(X + 1, Y).digest,
        Samples(X, Y + 1).digest,
        Samples(X).digest,
        Samples(X.astype("float32"), Y).digest,
        Samples(X.reshape(4, 3, 1), Y).digest,
        Samples({"left": X}, Y).digest,
    }
    assert len(digests) == 7
    assert Samples(X.copy(), Y.copy()).digest == Samples(X, Y).digest
    assert Samples(np.asfortranarray(X), Y).digest == Samples(X, Y).digest
    assert Samples(X, Y, "toy", "d1").dataset.digest == "d1"
    assert Samples({"a": X, "b": [X, X]}, Y).count == 4


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "test.npz"
    np.savez(file, x_test=X, y_test=Y, x_train=X)
    read = read_samples(file)
    assert (read.name, read.digest) == ("test.npz", Samples(X, Y).digest)
    np.savez(file, x=X)
    assert read_samples(file, name="toy", digest="d1").dataset.name == "toy"


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "test.npz"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_samples(file)
    file.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="is not an .npz file"):
        read_samples(file)
    file.write_text("x_test")
    with pytest.raises(UserError, match="is not an .npz file"):
        read_samples(file)
    np.savez(file, x_test=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="is not an .npz file of numbers .*allow_pickle=False"):
        read_samples(file)
    np.savez(file, images=X)
    with pytest.raises(UserError, match="holds images, but no x_test"):
        read_samples(file)
    np.save(file, X)  # which appends .npy
    with pytest.raises(UserError, match="holds one array, but no x_test"):
        read_samples(tmp_path / "test.npz.npy")
