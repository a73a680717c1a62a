"""The names of tfmot that are used here, some of them private; imported without its warning."""

import warnings
from typing import Any

from mlflow_keras_adv.extras import extra

with warnings.catch_warnings(), extra("compression"):
    # It compares versions by distutils, which setuptools keeps alive.
    warnings.filterwarnings("ignore", "distutils Version classes", DeprecationWarning)
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import (
        ClusterWeights,
    )
    from tensorflow_model_optimization.python.core.clustering.keras.clustering_registry import (
        ClusteringRegistry,
    )
    from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import (
        cluster_weights,
    )
    from tensorflow_model_optimization.python.core.quantization.keras import quant_ops
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve.cluster_preserve_quantize_registry import (  # noqa: E501
        ClusterPreserveQuantizeRegistry,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_layout_transform as layout_module,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit.default_8bit_quantize_registry import (  # noqa: E501
        Default8BitQuantizeRegistry,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_annotate import (
        QuantizeAnnotate,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
        QuantizeLayer,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
        QuantizeWrapper,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import (
        PruneRegistry,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import (
        PruneLowMagnitude,
    )

Default8BitQuantizeLayoutTransform = layout_module.Default8BitQuantizeLayoutTransform


class ModelTransformer(layout_module.model_transformer.ModelTransformer):
    """Replaces parts of a model's configuration; `_get_layers` and `_replace_functional` do it."""

    @property
    def layer_configs(self) -> list[dict[str, Any]]:
        """The configurations of the model's layers."""
        configs: list[dict[str, Any]] = self._config["layers"]
        return configs


# Attributes of a QuantizeWrapper: kernels, each with its quantizer and that one's variables; what
# rounds the activations of its layer; what rounds its results.
WEIGHTS, ACTIVATIONS, OUTPUTS = "_weight_vars", "_quantize_activations", "_output_quantizers"


def rounded_weights(layer: Any) -> list[tuple[Any, Any, Any]]:
    """Kernels that a layer rounds, each with its quantizer and that one's variables."""
    return getattr(layer, WEIGHTS, None) or []


def is_due(schedule: Any, step: Any, first: int, last: int, frequency: int) -> Any:
    """Whether a schedule of tfmot's prunes in a step, a boolean tensor."""
    return schedule._should_prune_in_step(step, first, last, frequency)


__all__ = [
    "ACTIVATIONS",
    "OUTPUTS",
    "WEIGHTS",
    "ClusterPreserveQuantizeRegistry",
    "ClusterWeights",
    "ClusteringRegistry",
    "Default8BitQuantizeLayoutTransform",
    "Default8BitQuantizeRegistry",
    "ModelTransformer",
    "PruneLowMagnitude",
    "PruneRegistry",
    "QuantizeAnnotate",
    "QuantizeLayer",
    "QuantizeWrapper",
    "cluster_weights",
    "is_due",
    "layout_module",
    "quant_ops",
    "rounded_weights",
    "tfmot",
]
