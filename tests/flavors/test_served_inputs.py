"""What callers may send to a logged model: texts, numbers, tables, ragged rows, JSON."""

import inspect
import json
from collections.abc import Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.flavors.keras import log_model

TEXTS = ["Hello big world!", "a b c", "the quick brown fox, jumps"]
COLORS, AGES, KINDS = ["red", "purple", "blue"], [3.0, 4.0, 5.5], [1, 9, 2]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'm.db'}")
        experiment = mlflow.create_experiment("inputs", (folder / "artifacts").as_uri())
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        yield


def served(model: keras.Model, example: Any, **arguments: Any) -> Any:
    with mlflow.start_run():
        info = log_model(model, name="m", input_example=example, **arguments)
    return mlflow.pyfunc.load_model(info.model_uri)


def over_json(loaded: Any, **content: Any) -> Any:
    """As a scoring server reads it."""
    read = json.loads(json.dumps(content))
    return loaded.predict(infer_and_parse_data(read, loaded.metadata.get_input_schema()))


def text_model(shape: tuple[int, ...] = ()) -> keras.Model:
    keras.utils.set_random_seed(0)
    words = keras.layers.TextVectorization(max_tokens=50, output_sequence_length=6)
    words.adapt(TEXTS)
    inputs = keras.Input(shape, dtype="string", name="text")
    flat = keras.layers.Reshape(())(inputs) if shape else inputs
    embedded = keras.layers.Embedding(50, 4)(words(flat))
    pooled = keras.layers.GlobalAveragePooling1D()(embedded)
    return keras.Model(inputs, keras.layers.Dense(2)(pooled))


def tabular_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    colors = keras.layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")
    kinds = keras.layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="one_hot")
    color = keras.Input((1,), dtype="string", name="color")
    age = keras.Input((1,), name="age")
    kind = keras.Input((1,), dtype="int64", name="kind")
    joined = keras.layers.Concatenate()([colors(color), age, kinds(kind)])
    inputs = {"color": color, "age": age, "kind": kind}
    return keras.Model(inputs, keras.layers.Dense(2, name="score")(joined))


def close(answer: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(answer), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(np.array(TEXTS), id="array"),
        pytest.param(np.array(TEXTS, dtype=object), id="objects"),
        pytest.param([each.encode() for each in TEXTS], id="bytes"),
        pytest.param(tf.constant(TEXTS), id="tensor"),
        pytest.param(pd.Series(TEXTS), id="series"),
        pytest.param(pd.DataFrame({"any": TEXTS}), id="frame"),
    ],
)
def test_a_model_of_texts_takes_them_in_every_form(example: Any) -> None:
    model = text_model()
    expected = model(tf.constant(TEXTS)).numpy()
    loaded = served(model, example)
    forms = [
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array([each.encode() for each in TEXTS]),
        np.array(TEXTS)[:, None],
        pd.Series(TEXTS),
        pd.DataFrame({"text": TEXTS}),
    ]
    for form in forms:
        close(loaded.predict(form), expected)
    close(over_json(loaded, inputs=TEXTS), expected)
    close(over_json(loaded, instances=TEXTS), expected)
    close(
        over_json(loaded, dataframe_split={"columns": ["t"], "data": [[t] for t in TEXTS]}),
        expected,
    )


def test_a_single_input_that_is_named_is_taken_by_name() -> None:
    model = text_model((1,))
    expected = model(tf.constant(TEXTS)[:, None]).numpy()
    for example in ({"text": np.array(TEXTS)}, {"text": TEXTS}, pd.DataFrame({"text": TEXTS})):
        loaded = served(model, example)
        assert loaded.metadata.get_input_schema().input_names() == ["text"]
        close(loaded.predict({"text": np.array(TEXTS)}), expected)
        close(loaded.predict(pd.DataFrame({"text": TEXTS})), expected)
        close(over_json(loaded, inputs={"text": TEXTS}), expected)
        close(over_json(loaded, inputs=TEXTS), expected)
        close(over_json(loaded, instances=[{"text": text} for text in TEXTS]), expected)


def column(values: Any, dtype: Any = None) -> np.ndarray:
    return np.array(values, dtype=dtype)[:, None]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            {"color": column(COLORS), "age": column(AGES, "float32"), "kind": column(KINDS)},
            id="arrays",
        ),
        pytest.param({"color": COLORS, "age": AGES, "kind": KINDS}, id="lists"),
        pytest.param(pd.DataFrame({"kind": KINDS, "color": COLORS, "age": AGES}), id="frame"),
    ],
)
def test_a_model_of_texts_and_numbers_takes_a_table(example: Any) -> None:
    model = tabular_model()
    values = {"color": COLORS, "age": AGES, "kind": KINDS}
    expected = model({name: tf.constant(each)[:, None] for name, each in values.items()}).numpy()
    loaded = served(model, example)
    schema = loaded.metadata.get_input_schema()
    types = {spec.name: spec.type for spec in schema.inputs}
    assert types["color"] == np.dtype(object)
    table = pd.DataFrame({"color": COLORS, "age": AGES, "kind": KINDS})
    close(loaded.predict(table), expected)
    arrays = {
        "color": np.array(COLORS),
        "age": np.array(AGES, types["age"]),
        "kind": np.array(KINDS),
    }
    if schema.input_dict()["age"].shape == (-1, 1):
        arrays |= {"age": arrays["age"][:, None], "kind": arrays["kind"][:, None]}
    close(loaded.predict(arrays), expected)
    lists = {name: array.tolist() for name, array in arrays.items()}
    close(over_json(loaded, inputs=lists), expected)
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    close(over_json(loaded, instances=rows), expected)
    split = {"columns": list(table), "data": table.values.tolist()}
    close(over_json(loaded, dataframe_split=split), expected)
    close(over_json(loaded, dataframe_records=table.to_dict("records")), expected)


def test_what_is_no_text_is_refused_by_name() -> None:
    model = text_model()
    with mlflow.start_run(), pytest.raises(ValueError, match=r"'text' takes texts; got None"):
        log_model(model, name="m", input_example=np.array(["a", None], dtype=object))
    loaded = served(model, TEXTS)
    with pytest.raises(ValueError, match=r"'text' takes texts; got nan, a float"):
        loaded.predict(pd.Series(["a", float("nan")], dtype=object))
    table = served(tabular_model(), pd.DataFrame({"color": COLORS, "age": AGES, "kind": KINDS}))
    with pytest.raises(mlflow.MlflowException, match=r"missing inputs \['age'\]"):
        table.predict(pd.DataFrame({"color": COLORS, "kind": KINDS}))


def test_bytes_that_are_no_text_pass() -> None:
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.Hashing(1000)(inputs))
    images = np.array([b"\xfe", b"\xff\xfe"], dtype=object)
    with pytest.warns(UserWarning, match="An input example was not provided"):  # JSON has no bytes
        loaded = served(model, images)
    np.testing.assert_array_equal(loaded.predict(images), model(tf.constant(images)))


def test_texts_come_out_as_texts() -> None:
    inputs = keras.Input((2,), dtype="int64")
    inverted = keras.layers.StringLookup(vocabulary=["ä", "b"], invert=True)(inputs)
    loaded = served(keras.Model(inputs, inverted), np.array([[1, 2], [0, 1]]))
    assert loaded.predict(np.array([[1, 2]])).tolist() == [["ä", "b"]]


@pytest.mark.skipif(
    "ragged" not in inspect.signature(keras.Input).parameters, reason="Keras takes none"
)
def test_ragged_rows_are_taken_where_keras_takes_them() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int64", ragged=True)
    model = keras.Model(inputs, keras.ops.sum(inputs, axis=1))
    rows = [[1, 2, 3], [4], [5, 6]]
    for example in (tf.ragged.constant(rows), rows):
        with mlflow.start_run():
            info = log_model(model, name="m", input_example=example)
        loaded = mlflow.pyfunc.load_model(info.model_uri)
        ragged = np.empty(3, dtype=object)
        ragged[:] = rows
        np.testing.assert_array_equal(loaded.predict(ragged), [6, 4, 11])
        np.testing.assert_array_equal(over_json(loaded, inputs=rows), [6, 4, 11])
        even = [[1, 2], [3, 4]]
        np.testing.assert_array_equal(over_json(loaded, instances=even), [3, 7])


@pytest.mark.parametrize("sent", ["float32", "float64", "int64"])
def test_json_is_read_as_the_dtype_that_the_model_was_logged_with(sent: str) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x = np.arange(6).reshape(2, 3).astype(sent)
    expected = model(x).numpy()
    loaded = served(model, x)
    close(loaded.predict(x), expected)
    close(over_json(loaded, inputs=x.tolist()), expected)
    close(over_json(loaded, instances=x.astype("float64").tolist()), expected)
    close(over_json(loaded, dataframe_split={"columns": list("abc"), "data": x.tolist()}), expected)


def test_several_inputs_in_a_list_of_lists() -> None:
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    model = keras.Model([left, right], keras.layers.Concatenate()([left, right]))
    loaded = served(model, [[[1.0, 2.0]], [[3.0]]])
    np.testing.assert_array_equal(
        over_json(loaded, inputs={"left": [[1, 2]], "right": [[3]]}), [[1, 2, 3]]
    )


def test_an_example_without_an_input_is_refused() -> None:
    with mlflow.start_run(), pytest.raises(ValueError, match=r"without \['kind'\]"):
        log_model(tabular_model(), name="m", input_example={"color": COLORS, "age": AGES})
    with mlflow.start_run(), pytest.raises((ValueError, UserError), match="as a dict of arrays"):
        log_model(tabular_model(), name="m", input_example=np.ones((2, 3)))
