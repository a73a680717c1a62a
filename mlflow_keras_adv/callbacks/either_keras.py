"""EitherKeras: what a Keras 3 callback needs to be called by tf_keras as well."""

import keras


class EitherKeras(keras.callbacks.Callback):
    """A callback for `fit` of Keras 3 and of tf_keras, which asks for the hooks that it has."""

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False
