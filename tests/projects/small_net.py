"""A small classifier of digits on record, from which a technique can start."""

import keras

import mlflow_keras_adv as mka
from projects.data import load


def log_small_net() -> str:
    """Trains it for three epochs and logs it as `small_net`.

    Returns:
        Its address: `models:/m-…`.
    """
    keras.utils.set_random_seed(0)
    images = load()
    image = keras.Input(images.input_shape)
    hidden = keras.layers.Conv2D(8, 3, activation="relu")(image)
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(hidden))
    model = keras.Model(image, keras.layers.Dense(images.classes)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss)
    model.fit(*images.train, epochs=3, verbose=0)
    info = mka.log_model(model, name="small_net", input_example=images.x_test[:2])
    return str(info.model_uri)
