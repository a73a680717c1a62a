"""A tf_keras layer that computes a function, and can be copied by its configuration.

tf_keras' `Lambda` is written down as bytecode, which it refuses to read again, and tfmot copies a
model by its configuration.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

_functions: WeakValueDictionary[int, Callable[..., Any]] = WeakValueDictionary()


@tf_keras.utils.register_keras_serializable("mlflow_keras_adv")
class OperationLayer(tf_keras.layers.Layer):
    """Computes a function; a copy computes the same one, in this process.

    Attributes:
        function: Takes one tensor, or a list of several.
    """

    def __init__(self, function: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(autocast=False, **options)
        self.function = function
        _functions[id(function)] = function

    def call(self, inputs: Any) -> Any:
        """Applies the function."""
        return self.function(inputs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """None: what an operation of Keras 3 answers has no mask either."""

    def get_config(self) -> dict[str, Any]:
        """The configuration, with the function's number instead of its code."""
        return super().get_config() | {"function": id(self.function)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "OperationLayer":
        """The layer of a configuration that was made in this process while its layer lived."""
        return cls(**config | {"function": _functions[config["function"]]})
