"""Every scheme on nets as people build them, each in a process of its own; writes the table.

The ones that went wrong without a word are tested in CI too: test_proof.py, test_fine_tuning.py.
"""

import pytest

from tests.compression import topologies
from tests.compression.page import SCHEMES, Row, is_worse, rows_of

# Why a file is more than two points worse than its float model, or than the model that was trained.
WORSE: dict[tuple[str, str], str] = {}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("net", topologies.NETS)
def test_a_net_is_as_good_as_before_or_the_page_says_why(
    net: str, request: pytest.FixtureRequest
) -> None:
    found = {
        scheme: each for scheme in SCHEMES for _, each in topologies.in_a_new_process(scheme, net)
    }
    worse = [scheme for scheme in SCHEMES if is_worse(found[scheme])]
    sentences = {}
    for scheme in worse:
        refused = found[scheme].get("refused", "")
        sentences[scheme] = WORSE.get((net, scheme), refused.partition("\n")[0])
    rows_of(request.config).append(Row(net, found, sentences))
    assert all(sentences.values()), {scheme: found[scheme] for scheme in worse}
    assert not [each for each in WORSE if each[0] == net and each[1] not in worse]
