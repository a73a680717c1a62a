"""Options of the evaluator `keras_adv` in `evaluator_config`. Imports no Keras."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mlflow_keras_adv.errors import UserError

NAME = "keras_adv"


@dataclass(frozen=True)
class Options:
    """The options in `evaluator_config`.

    Attributes:
        task: "classification", "binary", "multi-label", "regression", "segmentation", "tagging",
            "forecast" or "reconstruction"; for several outputs a dict by their names. Default:
            told by the compiled loss, else by labels and outputs, if they are unambiguous.
        metrics: Metrics of Keras or functions of scikit-learn to score by, instead of those that
            the model was compiled with; for several outputs a dict.
        targets: Labels of several outputs: a dict of arrays, or of columns of the data.
        sample_weight: As in Keras' `evaluate`, or the name of a column of the data.
        reference: URI of a Keras or LiteRT model to compare the outputs with: `final/difference` is
            their relative difference, `final/agreement` the share of equal decisions.
        class_names: Names of the classes, labels, tags or targets, in the order of the scores; of
            several outputs a dict. Labels may be such names.
        bins: Number of bins of the calibration error; 15 in the paper.
        from_logits: Whether the scores are logits; see `metrics.views.classes.probabilities`.
        repeats: Calls whose latency is measured.
    """

    task: Any = None
    metrics: Any = None
    targets: Any = None
    sample_weight: Any = None
    reference: str | None = None
    class_names: Any = None
    bins: int = 15
    from_logits: bool | None = None
    repeats: int = 200

    @classmethod
    def known(cls) -> list[str]:
        """The names of the options."""
        return [field.name for field in fields(cls)]

    @classmethod
    def read(cls, config: Mapping[str, Any] | None) -> "Options":
        """The options in an `evaluator_config`, which may hold them under the evaluator's name.

        Raises:
            UserError: There is an unknown one among them.
        """
        options = own(config)
        if not isinstance(options, Mapping) or set(options) - set(cls.known()):
            raise UserError(
                f"evaluator_config of {NAME} may hold {', '.join(cls.known())}; got {options!r}."
            )
        return cls(**options)


def own(config: Mapping[str, Any] | None) -> Any:
    """The part of an `evaluator_config` that is this evaluator's: all, if it names none."""
    return (config or {}).get(NAME, config or {})
