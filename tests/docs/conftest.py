"""One simulated gateway that the documents' examples may call."""

from collections.abc import Iterator

import pytest

from tests.support.house import Running

SIMULATED = """\
providers:
  alpha: {kind: sim}
  bravo: {kind: sim}
targets:
  gpt: {model: alpha/sim-1, limits: {rpm: 10_000}}
  llama: {model: bravo/sim-1}
chains:
  smart: {try: [gpt, llama], also: [default]}
  cheap: [llama, gpt]
tiers:
  free: {limits: {rpm: 20}}
teams:
  search: {tier: free}
"""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(SIMULATED, tmp_path_factory.mktemp("state")) as running:
        yield running
