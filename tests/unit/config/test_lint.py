"""What will hurt is said with its figures and its place."""

import pytest

from gateway.config.lint import lint
from gateway.config.load import load_text

HEAD = "providers: {s: {kind: sim}, t: {kind: sim}}\n"


def said(text: str, **env: str) -> list[str]:
    return [str(mistake) for mistake in lint(load_text(text, "f", env))]


CASES = {
    "one target": (
        "chains: {c: [s/m]}\n",
        ["f:2:10  warning  chains.c — one target: when it fails there is nothing to fall back to"],
    ),
    "less": (
        (
            "targets:\n"
            "  a: {model: s/m, limits: {rpm: 1940}, context: 272_000, can: [tools, vision]}\n"
            "  b: {model: t/m, limits: {rpm: 600}, context: 200_000, can: [tools]}\n"
            "chains: {c: [a, b]}\n"
        ),
        [
            (
                "f:4:3  warning  targets.b — carries 30 % of what stands before it in chain c "
                "(rpm 600 of 1 940)"
            ),
            (
                "f:4:3  warning  targets.b — reads 73 % of what stands before it in chain c "
                "(context 200 000 of 272 000)"
            ),
            "f:4:3  warning  targets.b — cannot do vision, as what stands before it in chain c can",
        ],
    ),
    "attempts": (
        "chains:\n  c: {try: [s/a, s/b, s/c], retry: {attempts: 2}}\n",
        [
            (
                "f:3:3  warning  chains.c — 3 targets but at most 2 attempts: the last are reached "
                "only past skipped ones; raise retry.attempts"
            )
        ],
    ),
    "deadline": (
        "chains:\n  c: {try: [s/a, s/b], deadline: 15s}\n",
        [
            (
                "f:3:34  warning  chains.c.deadline — 15s is less than the first_token of its "
                "targets together (20s): the last may not be asked"
            )
        ],
    ),
    "metrics": (
        (
            "chains: {c: [s/a, s/b]}\nserver: {admin: 0.0.0.0:81}\n"
            "observe: {metrics: {public: true}}\n"
        ),
        [
            (
                "f:4:29  warning  observe.metrics.public — whoever reaches 0.0.0.0:81 reads the "
                "metrics without a key"
            )
        ],
    ),
    "nothing": ("chains: {c: [s/a, t/b]}\n", []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_will_hurt_is_said(case: str) -> None:
    text, lines = CASES[case]
    assert said(HEAD + text) == lines


def test_literal_secrets_shared_keys_and_missing_prices() -> None:
    text = (
        "providers:\n"
        '  p: {kind: openai, base_url: "https://h.example/v1", key: canary}\n'
        "chains: {c: [p/a, p/b]}\n"
        "prices: {p/a: free}\n"
    )
    found = said(text)
    assert found == [
        (
            "f:2:60  warning  providers.p.key — a literal secret; write ${NAME} or ${file:/path} "
            "and keep it out of the file"
        ),
        (
            "f:3:19  chains.c[1] — no price, so it is always skipped; add prices: p/b, "
            "or unpriced: allow"
        ),
        (
            "f:3:19  warning  chains.c[1] — in chain c behind the same provider key as p/a: "
            "both go when it is refused"
        ),
    ]
    assert "canary" not in "\n".join(found)


def test_a_redis_password_in_the_file_is_a_literal_secret_and_a_bare_url_is_not() -> None:
    chains = "chains: {c: [s/m, t/m]}\n"
    assert said(HEAD + chains + "state: {redis: 'rediss://:pass@h:6379/0'}\n") == [
        (
            "f:3:16  warning  state.redis — a literal secret; write ${NAME} or ${file:/path} and "
            "keep it out of the file"
        )
    ]
    assert said(HEAD + chains + "state: {redis: redis://h}\n") == []
    assert said(HEAD + chains + "state: {redis: '${R:-}'}\n", R="redis://:pass@h") == []
