"""Numbers in running text are those of the source."""

import pytest

from gateway.core.snapshot import ServerSettings
from gateway.core.target import Chain, Retry
from gateway.errors import RETRY_WORTH_WAITING
from gateway.pipeline import (
    answer,
    attempt,
    authenticate,
    backoff,
    estimate,
    guard,
    plan,
    queue,
)
from gateway.server import crew, hints, workers
from gateway.server.connection import Bounds
from gateway.server.facades import chat, embeddings
from gateway.state.embedded import audit, health, ledger, stories
from gateway.telemetry import logs
from gateway.wire import admin
from tests.docs.pages import page

BOUNDS = Bounds()
CHAIN = Chain("", ())
RETRY = Retry()

PHRASES = {
    "chains": (
        f"less than {plan.MIN_ATTEMPT * 1000:.0f} ms",
        f"failed within {attempt.QUICK_FAILURE:.0f} s",
        f"over the next {health.RAMP:.0f} s",
        f"same_target: {RETRY.same_target}, attempts: {RETRY.attempts}",
        f"cap: {RETRY.cap:.0f}s, max_wait: {RETRY.max_wait:.0f}s",
    ),
    "streams": (
        f"has {answer.AFTER_FINISH:.0f} s for usage",
        f"({CHAIN.keepalive:.0f} s unless said)",
        f"takes nothing for {BOUNDS.blocked:.0f} s",
    ),
    "limits": (
        f"divided by {estimate.BYTES_A_TOKEN}, {chat.TOKENS_A_MESSAGE} for each message,",
        f"{chat.TOKENS_AN_IMAGE:,} for each image",
        f"else {plan.DEFAULT_OUTPUT:,}",
        f"{authenticate.FAILURES_A_MINUTE} wrong keys in a minute",
        f"`true` up to {RETRY_WORTH_WAITING:.0f} s",
        f"late by more than {guard.LAG_LOW * 1000:.0f} ms",
        f"by more than {guard.LAG_NORMAL * 1000:.0f} ms",
        f"more than {guard.MEMORY_LOW * 100:.0f} % of its memory",
        f"more than {guard.MEMORY_ALL * 100:.0f} %",
    ),
    "ledger": (
        f"every {answer.CHECKPOINT_TOKENS} tokens or {answer.CHECKPOINT_SECONDS:.0f} seconds",
        f"within {ledger.TIDY:.0f} s",
        f"| {ledger.LINES} days |",
        f"| {ledger.SUMS} days |",
        f"24 hours, at most {stories.MOST:,}",
    ),
    "http": (
        f"at most {hints.MOST_TAGS}, each part at most 64",
        f"at most {hints.MOST_SKIPPED}",
        f"{chat.DEEPEST} levels deep, with {chat.MOST_MESSAGES:,} messages, ",
        f"{chat.MOST_CHOICES} choices, {embeddings.MOST_INPUTS:,} inputs",
        f"{BOUNDS.head:.0f} s and {BOUNDS.headers} headers of at most {BOUNDS.line:,} bytes",
        f"a body {BOUNDS.body:.0f} s, and 1 KiB a second after the first five",
        f"idle for {BOUNDS.keepalive:.0f} s",
    ),
    "workers": (
        f"after {workers.HUNG:.0f} s without a sign of life",
        f"after {workers.PAUSE[0]} to {workers.PAUSE[1]} s,",
        f"at most {workers.MOST_PAUSE:.0f} s |",
        f"sibling within {ledger.TIDY:.0f} s",
        f"whole up to {logs.PIECE // 1024} KiB",
    ),
    "admin-api": (
        f"at most {admin.MOST_LISTED:,}",
        f"limit={admin.LISTED}",
        f"{admin.OVERLAP:,} if not said",
        f"{audit.A_SECOND} a second and {audit.AN_HOUR} an hour",
        f"{audit.KEPT // audit.DAY} days, at most {audit.MOST:,}",
    ),
    "keys-and-access": (f"at most {admin.MOST_OVERLAP // 86_400} days",),
}


@pytest.mark.parametrize(
    ("name", "phrase"), [(name, phrase) for name, found in PHRASES.items() for phrase in found]
)
def test_a_number_is_the_one_of_the_source(name: str, phrase: str) -> None:
    assert phrase.strip() in " ".join(page(f"docs/{name}.md").split())


# (page, words, what they stand for)
WORDS = [
    ("chains", "at most four times a second", attempt.PANIC_EVERY == 0.25),
    ("chains", "traffic returns in quarters", health.SHARES == (0.25, 0.5, 0.75)),
    ("chains", "a bucket of 10", health.FULL == 10 * health.RETRY),
    ("chains", "feeds by a fifth", Retry().budget * 5 == 1),
    ("chains", "in the last 10 minutes", health.LEARNT == 600),
    ("streams", "At most 64 KiB", answer.MAX_HELD == 64 * 1024),
    ("streams", "above 32 MiB", attempt.MAX_ANSWER == 32 * 1024 * 1024),
    ("limits", "A fifth of the places", queue.HIGH_SHARE == 0.2),
    ("limits", "one key holds at most half", queue.KEY_SHARE == 0.5),
    ("limits", "Up to a quarter", backoff.RETRY_SPREAD == 0.25),
    ("limits", "Four times a second", guard.EVERY == 0.25),
    ("limits", "of the last ten seconds", guard.LAGS * guard.EVERY == 10),
    ("limits", "only after two good seconds", guard.CALM * guard.EVERY == 2),
    ("limits", "more than half of its file descriptors", guard.FILES == 0.5),
    ("ledger", "Ten times a second", ledger.SHIP == 0.1),
    ("ledger", "once a second", ledger.SYNC == 1.0),
    ("ledger", "Every 10 minutes", ledger.CLEAN == 600),
    ("ledger", "24 hours", stories.KEPT == 86_400),
    ("http", "1 KiB a second after the first five", BOUNDS.body_rate == 1024),
    ("http", "the first five", BOUNDS.body_grace == 5.0),
    ("workers", "answer within a second", crew.PATIENCE == 1.0),
    ("quickstart", "`127.0.0.1:8080`", ServerSettings().port == 8080),
    ("quickstart", "`127.0.0.1:8081`", ServerSettings().admin_port == 8081),
]


@pytest.mark.parametrize(("name", "words", "so"), WORDS)
def test_words_that_stand_for_numbers_are_true(name: str, words: str, so: bool) -> None:
    assert words in " ".join(page(f"docs/{name}.md").split())
    assert so


def test_the_forbidden_members_are_told() -> None:
    text = page("docs/http.md")
    assert {name for name in chat.FORBIDDEN if f"`{name}`" not in text} == set()
