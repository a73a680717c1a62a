"""Runs a `.tflite` file with LiteRT: arrays in, arrays out.

This file is logged with every model of the LiteRT flavor, as a module named after its content. So a
model loads without this package and without TensorFlow; this file may import NumPy and LiteRT only.
The folder that it loads holds `model.tflite` and `model.json`:

    {"sha256": "…", "size_bytes": 57544, "params": {"num_threads": 2}}
"""

import hashlib
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

MODEL_FILE, DESCRIPTION_FILE = "model.tflite", "model.json"
# The params of `predict`, and their defaults.
PARAMS = {"batch_size": 32, "num_threads": 1, "dequantize": True, "output": "scores"}
OUTPUTS = ("scores", "class", "value")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a file.

    Attributes:
        name: Its name in the file's signature, or the tensor's own if there is no signature.
        index: Index of the tensor in the file.
        dtype: Its dtype in the file.
        shape: Its shape; -1 on each free axis.
        scale: A real number is `scale * (integer - zero_point)`; 0: the tensor is not quantized.
        zero_point: The integer that encodes 0.
    """

    name: str
    index: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def encode(self, values: Any) -> np.ndarray:
        """Converts values to the tensor's dtype; those of another dtype are real numbers.

        Raises:
            ValueError: Another shape, NaN where integers are meant, or numbers that do not fit.
        """
        array = np.asarray(values)
        sizes = zip(self.shape, array.shape, strict=False)
        if array.ndim != len(self.shape) or any(size not in (-1, got) for size, got in sizes):
            raise ValueError(f"input {self.name!r} takes the shape {self.shape}; got {array.shape}")
        if array.dtype == self.dtype:
            return np.ascontiguousarray(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"input {self.name!r} takes numbers; got the dtype {array.dtype}")
        with np.errstate(invalid="ignore", over="ignore"):  # checked right below
            if self.scale:
                limits, steps = np.iinfo(self.dtype), np.round(array / self.scale) + self.zero_point
                encoded = np.clip(steps, limits.min, limits.max).astype(self.dtype)
                fits = not np.isnan(array).any()
            else:
                encoded = array.astype(self.dtype)
                fits = self.dtype.kind == "f" or np.array_equal(encoded, array)
        if not fits:
            why = f"NaN, fractions or numbers out of range; got such a {array.dtype}"
            raise ValueError(f"input {self.name!r} is {self.dtype}, which cannot hold {why}")
        return encoded

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Decodes integers of the file to real numbers, float32; others are left as they are."""
        if not self.scale:
            return values
        return ((values.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)


class LiteRTModel:
    """A `.tflite` file, ready to run. Threads may share it; they take turns.

    Args:
        content: The file.
        **params: Defaults of the params of `predict`.

    Attributes:
        content: The file.
        params: The params of `predict`, with this model's defaults.
        inputs: In the order of the file's signature: alphabetical, as TensorFlow writes it.
        outputs: In the same order.
        rows: Samples per call; -1: any number; None: the first axis is not that of samples.
        signature: Its name; None if the file has none.

    Raises:
        ValueError: Not a `.tflite` file, or one that LiteRT cannot run; or unknown params.
    """

    def __init__(self, content: bytes, **params: Any) -> None:
        self.content = bytes(content)
        self.params: dict[str, Any] = dict(PARAMS)
        self.params = self._settings(params)
        self._num_threads = int(self.params["num_threads"])
        self._lock = threading.Lock()
        self._interpreter = _interpreter(self.content, self._num_threads)
        self.signature, (self.inputs, self.outputs) = _tensors(self._interpreter)
        leading = {tensor.shape[:1] for tensor in (*self.inputs, *self.outputs)}
        self.rows = leading.pop()[0] if len(leading) == 1 and () not in leading else None
        if self.rows is not None:  # predict() takes any number, in calls of that many
            self.inputs = tuple(replace(each, shape=(-1, *each.shape[1:])) for each in self.inputs)
            self.outputs = tuple(replace(t, shape=(-1, *t.shape[1:])) for t in self.outputs)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> np.ndarray | Arrays:
        """Predicts, in batches.

        Args:
            data: For one input an array of shape (samples, …), a nested list, or a DataFrame with
                a column for each feature, or a column of the input's name with a sample per cell.
                For several inputs a dict of arrays, a DataFrame with a column for each, or a list
                in their order.
            params: `batch_size`: samples per call, if the file leaves their number free;
                `num_threads`; `dequantize`: False returns the integers of an integer output;
                `output`: "scores" returns the outputs of the file, "class" the class of the highest
                score (-1 if one is NaN), "value" removes a last axis of 1. `mlflow.models.evaluate`
                needs "class" for a classifier and "value" for a regressor.

        Returns:
            Outputs of shape (samples, …); for several outputs a dict of these arrays by name.

        Raises:
            ValueError: Unknown params, or data that do not fit the inputs.
        """
        settings = self._settings(params)
        given = self.named(data)
        feeds = {tensor.name: tensor.encode(given[tensor.name]) for tensor in self.inputs}
        with self._lock:
            if settings["num_threads"] != self._num_threads:
                self._num_threads = int(settings["num_threads"])
                self._interpreter = _interpreter(self.content, self._num_threads)
            found = self._in_batches(feeds, settings["batch_size"])
        if settings["dequantize"]:
            found = {tensor.name: tensor.decode(found[tensor.name]) for tensor in self.outputs}
        found = {name: _asked(name, found[name], settings["output"]) for name in found}
        return found if len(found) > 1 else next(iter(found.values()))

    def invoke(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Calls the interpreter once: arrays by name, of the dtypes and shapes of the file."""
        try:
            for tensor in self.inputs:  # costs nothing where the sizes are those of the last call
                shape = feeds[tensor.name].shape
                self._interpreter.resize_tensor_input(tensor.index, shape, strict=True)
            self._interpreter.allocate_tensors()
            for tensor in self.inputs:
                self._interpreter.set_tensor(tensor.index, feeds[tensor.name])
            self._interpreter.invoke()
        except RuntimeError as error:
            raise ValueError(f"LiteRT cannot run this model: {error}") from error
        return {tensor.name: self._interpreter.get_tensor(tensor.index) for tensor in self.outputs}

    def get_raw_model(self) -> "LiteRTModel":
        """For `PyFuncModel.get_raw_model`."""
        return self

    def _settings(self, params: Mapping[str, Any] | None) -> dict[str, Any]:
        settings = {**self.params, **(params or {})}
        if unknown := sorted(set(settings) - set(PARAMS)):
            raise ValueError(f"params may hold {', '.join(PARAMS)}; got {', '.join(unknown)}")
        for name in ("batch_size", "num_threads"):
            if int(settings[name]) != settings[name] or settings[name] < 1:
                raise ValueError(f"{name} must be a whole number from 1; got {settings[name]!r}")
        if settings["output"] not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}; got {settings['output']!r}")
        return settings

    def _in_batches(self, feeds: Arrays, batch_size: int) -> Arrays:
        if self.rows is None:
            return self.invoke(feeds)
        counts = {name: len(array) for name, array in feeds.items()}
        count = min(counts.values())
        if count == 0 or len(set(counts.values())) > 1:
            raise ValueError(f"every input needs the same count of samples, above 0; got {counts}")
        # Unless it is -1, the file takes that many, no fewer.
        size, padding = (batch_size, 0) if self.rows == -1 else (self.rows, -count % self.rows)
        padded = {k: np.concatenate([v, np.repeat(v[-1:], padding, 0)]) for k, v in feeds.items()}
        parts = [
            self.invoke({name: array[start : start + size] for name, array in padded.items()})
            for start in range(0, count, size)
        ]
        joined = {each.name: np.concatenate([p[each.name] for p in parts]) for each in self.outputs}
        return {name: array[:count] for name, array in joined.items()}

    def named(self, data: Any) -> dict[str, Any]:
        """The data of `predict` by the names of the inputs; see there."""
        names = [tensor.name for tensor in self.inputs]
        if hasattr(data, "to_numpy"):  # pandas, which need not be here
            return self._columns(data)
        if isinstance(data, Mapping):
            if set(data) != set(names):
                raise ValueError(f"the inputs are {names}; got {sorted(data)}")
            return dict(data)
        if len(names) == 1:
            return {names[0]: np.asarray(data)}
        if isinstance(data, (list, tuple)) and len(data) == len(names):
            return dict(zip(names, data, strict=True))
        how = f"a dict of arrays, a DataFrame with these columns, or {len(names)} arrays"
        raise ValueError(f"send the inputs {names} as {how}; got a {type(data).__name__}")

    def _columns(self, table: Any) -> dict[str, Any]:
        columns, names = list(getattr(table, "columns", [])), [each.name for each in self.inputs]
        if len(names) == 1 and names[0] not in columns:
            values = table.to_numpy()
            cells = {names[0]: values.reshape(-1) if values.dtype == object else values}
        elif set(names) <= set(columns):
            cells = {name: table[name].to_numpy() for name in names}
        else:
            raise ValueError(f"the DataFrame needs the columns {names}; got {columns}")
        return {each.name: _reshaped(cells[each.name], each.shape) for each in self.inputs}


def load(folder: str | Path) -> LiteRTModel:
    """Loads the model in a folder, which holds `model.tflite` and `model.json`.

    Raises:
        ValueError: A file is missing or damaged, or LiteRT cannot run the model.
    """
    path, description = Path(folder) / MODEL_FILE, Path(folder) / DESCRIPTION_FILE
    try:
        content = path.read_bytes()
        described = json.loads(description.read_text())
        expected, params = described["sha256"], dict(described.get("params", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{folder} holds no complete LiteRT model ({error!r}); download or log it again"
        raise ValueError(reason) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        difference = f"its sha256 is {found}, expected {expected}; download or log it again"
        raise ValueError(f"{path} is not the file that was logged: {difference}")
    return LiteRTModel(content, **params)


def _load_pyfunc(path: str) -> LiteRTModel:
    """The hook of MLflow's python_function flavor."""
    code = Path(path, "../../code").resolve()
    # MLflow put it there for this file, which is imported by now.
    if [each.name for each in code.glob("*.py")] == [Path(__file__).name]:
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != code]
    return load(path)


def _interpreter(content: bytes, num_threads: int) -> Any:
    if content[4:8] != b"TFL3":
        found = f"bytes 4 to 8 are {content[4:8]!r}, expected b'TFL3'"
        raise ValueError(f"this is not a .tflite file: {found}")
    try:
        interpreter = _litert().Interpreter(model_content=content, num_threads=num_threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        why = f"which may be damaged or need operations that LiteRT does not have: {error}"
        message = f"LiteRT cannot run this .tflite file of {len(content)} bytes, {why}"
        raise ValueError(message) from error
    return interpreter


def _litert() -> Any:
    """Imported on first use: code for files and Keras models must work without LiteRT."""
    try:
        from ai_edge_litert import interpreter
    except ModuleNotFoundError as error:
        try:
            from mlflow_keras_adv.extras import MissingExtraError
        except ImportError:  # this is the copy in a model, which needs no such package
            raise error from None
        raise MissingExtraError("compression", str(error.name)) from None
    return interpreter


def _tensors(interpreter: Any) -> tuple[str | None, list[tuple[Tensor, ...]]]:
    keys = list(interpreter.get_signature_list())
    if len(keys) > 1:
        raise ValueError(f"this .tflite file has the signatures {keys}; give a file with one")
    if keys:
        try:
            runner = interpreter.get_signature_runner(keys[0])
            sides = [runner.get_input_details(), runner.get_output_details()]
        except TypeError as error:
            raise ValueError(
                "this .tflite file is damaged: its signature names no tensor"
            ) from error
    else:
        listed = interpreter.get_input_details(), interpreter.get_output_details()
        sides = [{each["name"]: each for each in side} for side in listed]
    tensors = [tuple(_tensor(name, each) for name, each in side.items()) for side in sides]
    return next(iter(keys), None), tensors


def _tensor(name: str, details: Mapping[str, Any]) -> Tensor:
    dtype = np.dtype(details["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"{name!r} is of {dtype}; only tensors of numbers can be sent or had")
    scale, zero_point = details["quantization"] if dtype.kind in "iu" else (0, 0)
    shape = tuple(int(size) for size in details["shape_signature"])
    return Tensor(name, int(details["index"]), dtype, shape, float(scale), int(zero_point))


def _asked(name: str, values: np.ndarray, output: str) -> np.ndarray:
    if output == "class":
        if values.ndim < 2 or values.shape[-1] < 2:
            raise ValueError(f"{name!r} of shape {values.shape} has no classes to choose among")
        return np.where(np.isnan(values).any(axis=-1), -1, values.argmax(axis=-1))
    return values[..., 0] if output == "value" and values.shape[1:][-1:] == (1,) else values


def _reshaped(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Columns of numbers or of flat samples in the shape of the input, where that is known."""
    values = np.stack([np.asarray(cell) for cell in cells])
    fits = -1 not in shape[1:] and values.size == len(values) * int(np.prod(shape[1:]))
    return values.reshape(len(values), *shape[1:]) if fits else values
