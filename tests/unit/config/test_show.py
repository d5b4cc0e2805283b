"""The effective file masks secrets and means the same as the file."""

from pathlib import Path

from gateway.config.load import load, load_text
from gateway.config.show import as_yaml, show
from gateway.wire import json

ROOT = Path(__file__).parents[3]
KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEY_2", "EAST_KEY")
ENV = {key: f"canary-{key}" for key in KEYS}


def test_the_effective_file_masks_secrets_and_means_the_same() -> None:
    loaded = load(ROOT / "config/gateway.yaml", ENV)
    shown = as_yaml(loaded)
    assert "canary" not in shown
    assert "canary" not in show(loaded)
    assert json.loads(show(loaded).encode())["defaults"]["retry"]["backoff"] == "250ms"
    again = load_text(shown.replace(": …", ': "x"'), "f", {}).snapshot
    assert again.server == loaded.snapshot.server
    assert again.keys == loaded.snapshot.keys
    assert list(again.targets) == list(loaded.snapshot.targets)
    for name, target in again.targets.items():
        assert target.prices == loaded.snapshot.targets[name].prices
        assert target.accounts == loaded.snapshot.targets[name].accounts
        assert target.params == loaded.snapshot.targets[name].params
    for name, chain in again.chains.items():
        assert chain.retry == loaded.snapshot.chains[name].retry
        assert [leaf.timeouts for leaf in chain.leaves()] == [
            leaf.timeouts for leaf in loaded.snapshot.chains[name].leaves()
        ]
