"""Every scheme on nets as people build them, each in a process of its own; writes the table.

The ones that went wrong without a word are tested in CI too: test_proof.py, test_fine_tuning.py.
"""

import pytest

from tests.compression import topologies
from tests.compression.page import SCHEMES, Row, is_worse, rows_of

# Why a file is more than two points worse than its float model, or than the model that was trained.
WORSE: dict[tuple[str, str], str] = {
    ("Bidirectional", "int8"): "LiteRT's quantizer finds no ranges inside the loop of an LSTM; "
    "`dynamic_int8` and `float16` need none.",
    ("Bidirectional", "prune"): "half of the weights of an LSTM are gone, and four epochs do not "
    "bring back the last two points.",
    ("Bidirectional", "qat"): "the converter refuses the loop of an LSTM in tf_keras; this is said "
    "before the training.",
}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("net", topologies.NETS)
def test_a_net_is_as_good_as_before_or_the_page_says_why(
    net: str, request: pytest.FixtureRequest
) -> None:
    epochs = topologies.EPOCHS.get(net, {})
    found = {
        scheme: each
        for scheme in SCHEMES
        for _, each in topologies.in_a_new_process(scheme, net, **epochs)
    }
    worse = [scheme for scheme in SCHEMES if is_worse(found[scheme])]
    sentences = {}
    for scheme in worse:
        refused = found[scheme].get("refused", "")
        sentences[scheme] = WORSE.get((net, scheme), refused.partition("\n")[0])
    rows_of(request.config).append(Row(net, found, sentences))
    assert all(sentences.values()), {scheme: found[scheme] for scheme in worse}
    assert not [each for each in WORSE if each[0] == net and each[1] not in worse]
