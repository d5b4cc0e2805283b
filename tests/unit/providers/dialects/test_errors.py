"""What errors mean, how long they ask us to wait, and what of them may be shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.target import Cause, Failure
from gateway.providers.dialects import errors

SECRET = "sk-verysecretkey123"


def judge(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return errors.failure(status, headers or {}, raw, SECRET)


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (300, Cause.SERVER_ERROR), (302, Cause.SERVER_ERROR), (307, Cause.SERVER_ERROR),
        (400, Cause.BAD_REQUEST), (401, Cause.AUTH), (402, Cause.QUOTA), (403, Cause.AUTH),
        (404, Cause.MODEL_GONE), (405, Cause.MODEL_GONE), (408, Cause.SERVER_ERROR),
        (409, Cause.SERVER_ERROR), (410, Cause.MODEL_GONE), (413, Cause.CONTEXT_LENGTH),
        (415, Cause.BAD_REQUEST), (418, Cause.BAD_REQUEST), (421, Cause.MODEL_GONE),
        (422, Cause.BAD_REQUEST), (424, Cause.SERVER_ERROR), (425, Cause.SERVER_ERROR),
        (429, Cause.RATE_LIMITED), (498, Cause.OVERLOADED), (499, Cause.BAD_REQUEST),
        (500, Cause.SERVER_ERROR), (501, Cause.SERVER_ERROR), (502, Cause.SERVER_ERROR),
        (503, Cause.OVERLOADED), (504, Cause.SERVER_ERROR), (520, Cause.SERVER_ERROR),
        (524, Cause.SERVER_ERROR), (529, Cause.OVERLOADED), (599, Cause.SERVER_ERROR),
        (204, Cause.MALFORMED), (101, Cause.MALFORMED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]", b"[1]", b'"x"', b"{}", b"\xff"])
def test_a_status_alone_has_a_cause(status: int, cause: Cause, body: bytes) -> None:
    failure = judge(status, body)
    assert failure.cause is cause
    assert failure.status == status
    assert failure.message.startswith(f"answered {status}")


def said(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (400, said("", code="context_length_exceeded"), Cause.CONTEXT_LENGTH),
        (400, said("This model's maximum context length is 8 tokens."), Cause.CONTEXT_LENGTH),
        (400, said("Your input exceeds the context window of this model"), Cause.CONTEXT_LENGTH),
        (400, {"error": {"type": "exceed_context_size_error", "code": 400}}, Cause.CONTEXT_LENGTH),
        (422, said("`inputs` tokens + `max_new_tokens` must be <= 4096"), Cause.CONTEXT_LENGTH),
        (400, said("The input token count (9) exceeds the maximum"), Cause.CONTEXT_LENGTH),
        (400, said("", code="unsupported_parameter", param="n"), Cause.UNABLE),
        (400, said("", code="unsupported_value", param="temperature"), Cause.UNABLE),
        (400, said("", code="content_policy_violation"), Cause.CONTENT_POLICY),
        (400, said("", code="content_filter"), Cause.CONTENT_POLICY),
        (
            400,
            said("x", innererror={"code": "ResponsibleAIPolicyViolation"}),
            Cause.CONTENT_POLICY,
        ),
        (
            400,
            said("x", inner_error={"code": "ResponsibleAIPolicyViolation"}),
            Cause.CONTENT_POLICY,
        ),
        (403, said("x", code=403, metadata={"reasons": ["violence"]}), Cause.CONTENT_POLICY),
        (429, said("", code="insufficient_quota"), Cause.QUOTA),
        (429, said("", type="insufficient_quota"), Cause.QUOTA),
        (429, said("You exceeded your current quota"), Cause.RATE_LIMITED),  # Gemini says so too
        (413, said("Request too large for model `x`"), Cause.RATE_LIMITED),
        (429, said("Request too large for gpt-4o"), Cause.RATE_LIMITED),
        (400, {"code": "invalid-argument", "error": "Incorrect API key provided"}, Cause.AUTH),
        (400, said("API key not valid. Please pass a valid one."), Cause.AUTH),
        (400, said("", code="tool_use_failed"), Cause.MALFORMED),
        (400, said("Model Not Exist"), Cause.MODEL_GONE),
        (400, said("auto tool choice requires --enable-auto-tool-choice"), Cause.UNABLE),
        (404, said("No endpoints found that support tool use"), Cause.UNABLE),
        (400, {"detail": [{"loc": ["body"], "msg": "field required"}]}, Cause.BAD_REQUEST),
        (401, {"detail": "Invalid API key"}, Cause.AUTH),
        # phrases count at their own status only
        (500, said("This model's maximum context length is 8 tokens."), Cause.SERVER_ERROR),
        (401, said("maximum context length is 8"), Cause.AUTH),
        (404, said("content_filter Incorrect API key"), Cause.MODEL_GONE),
        (400, said("Invalid 'user': string_above_max_length"), Cause.BAD_REQUEST),
    ],
    ids=repr,
)
def test_exceptions_come_before_the_status(status: int, body: Any, cause: Cause) -> None:
    assert judge(status, body).cause is cause


def test_too_large_a_request_rests_nobody() -> None:
    failure = judge(
        429, said("Request too large for gpt-4o. Try again in 5s"), {"retry-after": "9"}
    )
    assert not failure.throttles
    assert failure.retry_after is None


@pytest.mark.parametrize(
    ("error", "feature"),
    [
        ({"code": "unsupported_parameter", "param": "max_tokens"}, "max_tokens"),
        ({"code": "unsupported_parameter", "param": "parallel_tool_calls"}, "parallel_tools"),
        ({"code": "unsupported_value", "param": "response_format.type"}, "json_schema"),
        ({"code": "unsupported_value", "param": "messages[1].content[0].image_url"}, "vision"),
        ({"code": None, "message": "Unsupported parameter: 'top_p' is not supported."}, "top_p"),
        ({"code": "unsupported_parameter"}, None),
        ({"code": "unsupported_parameter", "param": "<script>"}, None),
        ({"message": "m does not support tools"}, "tools"),
        ({"message": "... Please use /v1/responses instead."}, None),
    ],
    ids=repr,
)
def test_a_refusal_names_its_feature(error: dict[str, Any], feature: str | None) -> None:
    failure = judge(400, {"error": error})
    assert failure.cause is Cause.UNABLE
    assert failure.feature == feature


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
LATER = "Wed, 21 Oct 2026 07:28:30 GMT"


@pytest.mark.parametrize(
    ("headers", "message", "wait"),
    [
        ({}, "", None),
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"retry-after-ms": "644"}, "", 0.644),
        ({"retry-after-ms": "0", "retry-after": "1"}, "", 1.0),  # Azure
        ({"retry-after-ms": "644", "retry-after": "1"}, "in 500ms", 1.0),
        ({"retry-after": LATER, "date": DATE}, "", 30.0),
        ({"retry-after": LATER}, "", None),
        ({"retry-after": DATE, "date": LATER}, "", None),
        ({"retry-after": "junk"}, "", None),
        ({"retry-after": "nan"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after": "-1"}, "", None),
        ({"retry-after": "1e9"}, "", None),
        ({"retry-after": "0"}, "", None),
        ({"retry-after": "999999"}, "", 3600.0),
        ({"retry-after": "٣"}, "", None),
        ({}, "Please try again in 644ms. Visit", 0.644),
        ({}, "Please retry in 48.9s.", 48.9),
        ({}, "Please retry after 33 seconds", 33.0),
        ({}, "Please try again in 6m0s.", 360.0),
        ({}, "try again in 1h2m3s", 3723.0 - 123.0),
        ({}, "try again in 2 minutes", 120.0),
        ({}, "try again later", None),
        ({"x-ratelimit-reset-requests": "120ms"}, "", 0.12),
        ({"x-ratelimit-reset-tokens": "6m0s"}, "", 360.0),
        ({"x-ratelimit-reset-tokens": "59.874s", "retry-after": "1"}, "", 1.0),
        (
            {
                "x-ratelimit-reset-tokens": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-requests": "60s",
                "x-ratelimit-remaining-requests": "5",
            },
            "",
            2.0,
        ),
        ({"x-ratelimit-reset": "30"}, "", 30.0),
        ({"x-ratelimit-reset": "1792567710", "date": DATE}, "", 30.0),
        ({"x-ratelimit-reset": "1792567710000", "date": DATE}, "", 30.0),
        ({"x-ratelimit-reset": "1792567710"}, "", None),
        ({"x-ratelimit-reset-tokens": "0s"}, "", None),
        ({"x-ratelimit-reset-tokens": "junk"}, "", None),
    ],
    ids=repr,
)
def test_how_long_to_wait(headers: dict[str, str], message: str, wait: float | None) -> None:
    found = judge(429, said(message), headers).retry_after
    assert found == (None if wait is None else pytest.approx(wait))


def test_resets_stand_on_every_answer_and_mean_nothing_but_on_a_429() -> None:
    assert judge(500, b"", {"x-ratelimit-reset-requests": "120ms"}).retry_after is None
    assert judge(503, b"", {"retry-after": "3"}).retry_after == 3.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_junk_never_raises(text: str, date: str) -> None:
    headers = {
        "retry-after": text, "retry-after-ms": text, "date": date,
        "x-ratelimit-reset": text, "x-ratelimit-reset-tokens": text,
    }  # fmt: skip
    wait = judge(429, said(text), headers).retry_after
    assert wait is None or 0 < wait <= 3600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "detail", "param", "innererror"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.integers(100, 599), JSON)
def test_any_error_body_has_a_cause(status: int, body: Any) -> None:
    failure = judge(status, body)
    assert failure.cause in Cause
    assert len(failure.body) <= errors.MOST_BODY
    in_band = errors.in_band(body, SECRET)
    assert in_band.cause in Cause


@pytest.mark.parametrize(
    "leak",
    [
        SECRET, "sk-abcdefgh", "sk-proj-****abcd", "gsk_12345678", "xai-abcdef123",
        "AIzaSyD-12345678", "Bearer abc.def.ghi", "key=abcdef", "https://x/?key=abcdef&b=1",
        "token=abcdef",
    ],
)  # fmt: skip
def test_secrets_are_not_shown(leak: str) -> None:
    for body in (
        said(f"the key {leak} is bad", param=leak),
        {"error": {"message": "x", leak: leak}},
        {"detail": [{"msg": [leak]}]},
        f"plain {leak} text".encode(),
    ):
        failure = judge(400, body)
        assert failure.cause is Cause.BAD_REQUEST
        assert failure.body
        shown = failure.body.decode()
        hidden = leak.removeprefix("https://x/?")
        assert hidden not in shown, shown
        assert "abcdef" not in shown
        assert SECRET not in shown


def test_a_secret_is_no_name() -> None:
    assert SECRET not in judge(429, {"error": {"code": SECRET}}).message
    assert judge(429, {"error": {"code": "slow_down"}}).message == "answered 429 slow_down"
    assert judge(429, {"error": {"code": "no <b>html</b>"}}).message == "answered 429"


@pytest.mark.parametrize("filler", ["x", "é", "\\", "\x00", "😀"])
def test_a_long_body_is_cut_and_stays_json(filler: str) -> None:
    long = filler * 5000
    failure = judge(400, {"error": {"message": long, "type": long, "code": long, "param": long}})
    assert len(failure.body) <= errors.MOST_BODY
    assert set(json.loads(failure.body)["error"]) == {"message", "type", "code", "param"}
    text = judge(400, long.encode())
    assert len(text.body) <= errors.MOST_BODY
    text.body.decode()


def test_a_deep_body_does_not_break_us() -> None:
    deep = b'{"error":' * 900 + b"1" + b"}" * 900
    json.loads(judge(400, deep).body)


@pytest.mark.parametrize("cause_status", [401, 402, 404, 429, 500, 503])
def test_only_the_callers_own_mistakes_are_relayed(cause_status: int) -> None:
    assert judge(cause_status, said("internal detail")).body == b""


def test_an_error_in_band_may_say_how_long() -> None:
    failure = errors.in_band(said("try again in 2s", type="rate_limit_error"), SECRET)
    assert (failure.cause, failure.retry_after) == (Cause.RATE_LIMITED, 2.0)
