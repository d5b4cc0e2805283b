"""The file's rows first, then the catalogue; whole nano-dollars."""

from datetime import UTC, datetime

from gateway.config.load import load_text
from gateway.config.prices import known
from gateway.core.target import Target
from gateway.core.usage import Price, in_force

OPENAI = "https://api.openai.com/v1"
HEAD = """
providers:
  openai: {kind: openai, key: "${K}"}
  own: {kind: openai, base_url: "https://own.example.net/v1"}
  sim: {kind: sim}
"""


def target(model: str, prices: str) -> Target:
    text = f"{HEAD}chains: {{c: [{model}]}}\nprices: {{{prices}}}\n"
    (found,) = load_text(text, "f", {"K": "k"}).snapshot.targets.values()
    return found


def test_rows_are_exact_dated_and_in_order() -> None:
    found = target(
        "own/m",
        "own/m: [{from: 2026-02-01, input: 0.000000001, output: 2}, {input: 0.25, output: 2.00,"
        " cached_input: 0.025, request: 0.001, above: {context: 200_000, output: 3}}]",
    ).prices
    since = datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    base = Price(
        "yaml:own/m", 250_000_000, 2_000_000_000, cached_input=25_000_000, request=1_000_000
    )
    assert [price.id for price in found] == ["yaml:own/m", "yaml:own/m@2026-02-01"]
    assert found[1] == Price("yaml:own/m@2026-02-01", 1, 2_000_000_000, since=since)
    ((threshold, dearer),) = found[0].above
    assert threshold == 200_000
    assert (dearer.input, dearer.output) == (base.input, 3_000_000_000)
    assert in_force(found, since - 1) is found[0]
    assert in_force(found, since) is found[1]


def test_a_price_may_be_copied_free_simulated_or_missing() -> None:
    copied = target("own/m", "own/m: openai/x, openai/x: [{input: 1, output: 1}]")
    assert [price.id for price in copied.prices] == ["yaml:openai/x"]
    assert [price.id for price in target("own/m", "own/m: free").prices] == ["free"]
    assert target("sim/any", "").prices == (Price("sim", 250_000_000, 2_000_000_000),)
    assert target("own/m", "").prices == ()
    assert target("own/m", "unpriced: allow").allow_unpriced


def test_the_catalogue_fills_gaps() -> None:
    found = target("openai/gpt-5-mini", "")
    assert found.prices[0].input == 250_000_000
    assert found.prices[0].id.startswith("genai:openai/gpt-5-mini@")
    assert found.context == 400_000
    through_copy = target("own/m", "own/m: openai/gpt-5-mini")
    assert through_copy.prices == found.prices


def test_long_prompts_cost_what_the_catalogue_says() -> None:
    (price,) = known(None, OPENAI, "gpt-5.4").prices
    ((threshold, dearer),) = price.above
    assert threshold == 272_000
    assert (price.input, dearer.input) == (2_500_000_000, 5_000_000_000)
    assert (price.output, dearer.output) == (15_000_000_000, 22_500_000_000)


def test_nobody_knows_a_server_of_our_own() -> None:
    assert known(None, "https://own.example.net/v1", "gpt-5-mini").prices == ()
    assert known("no-such-provider", "", "gpt-5-mini").prices == ()
