"""Every feature on a model of every kind: it works, or it refuses in a sentence; nothing is wrong.

What is quick is run by CI, on each kind; all of it writes the table in docs/any-model.md.
"""

import re

import pytest

from mlflow_keras_adv.errors import UserError
from tests.kinds.features import FEATURES
from tests.kinds.models import KINDS, Kind, many_layers
from tests.kinds.page import Cell, cells_of

IN_CI = ("finished",)

CASES = [
    pytest.param(
        kind,
        feature,
        marks=[] if feature in IN_CI and kind is not many_layers else [pytest.mark.soak],
        id=f"{kind.__name__}-{feature}",
    )
    for kind in KINDS
    for feature in FEATURES
]


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*retracing:UserWarning")
# MLflow's own, of a DataFrame: under pandas 3, and of any integer column.
@pytest.mark.filterwarnings("ignore:Starting with pandas version 4")
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.drop")
@pytest.mark.filterwarnings("ignore:Hint. Inferred schema contains integer")
@pytest.mark.parametrize(("kind", "feature"), CASES)
def test_it_works_or_is_refused_in_a_sentence(
    kind: Kind, feature: str, experiment: str, request: pytest.FixtureRequest
) -> None:
    said, refused = "", False
    try:
        said = FEATURES[feature](kind) or ""
    except UserError as error:
        said, refused = _general(str(error)), True
        assert len(said) > 20
    cells_of(request.config).append(Cell(kind.__name__, feature, said, refused))


def _general(text: str) -> str:
    """A refusal without what is of this one model: names that Keras has given, numbers."""
    first = " ".join(text.split()).partition(". ")[0]
    first = re.sub(r"(model|layer) '[\w/]+'", r"\1 …", first)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "…", first)[:240]
