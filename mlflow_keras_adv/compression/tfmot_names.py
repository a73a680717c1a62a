"""What is used of tfmot, of which some names are not public; imported without its old warning."""

import warnings

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
ModelTransformer = layout_module.model_transformer.ModelTransformer

__all__ = [
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
    "layout_module",
    "quant_ops",
    "tfmot",
]
