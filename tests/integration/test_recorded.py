"""Recorded traffic through the whole gateway over sockets, cut here and there: SDKs as judges."""

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time

import httpx2
import openai
import pytest

from tests.support.house import Running
from tests.vectors import cases

WIRE = cases.SHARED.parent / "wire"
pytestmark = pytest.mark.skipif(not WIRE.is_dir(), reason="../shared is not beside the project")
CUTS = (0, 1, 300, -40, -1)  # bytes after which the connection is dropped; from the end if < 0


@contextlib.contextmanager
def replay(folder):
    """The replay server of ../shared/wire as a process of its own; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, WIRE / "replay.py", str(port), cases.SHARED]
    with (folder / "replay.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(400):
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/_log")
                    break
                except httpx2.TransportError:
                    time.sleep(0.05)
            else:
                pytest.fail((folder / "replay.log").read_text()[-2000:])
            yield port
        finally:
            server.kill()
            server.wait()


def name_of(case: cases.Case, option: str = "") -> str:
    """A provider's name for this case: the file allows 64 characters."""
    return hashlib.sha256(f"{case.name}{option}".encode()).hexdigest()[:16]


def offsets(case: cases.Case) -> list[int]:
    size = len(case.body)
    return sorted({at if at >= 0 else max(0, size + at) for at in CUTS if abs(at) <= size})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """One provider and one chain for each case and each cut of a stream."""
    wanted = [(case, "") for case in (*cases.wholes(), *cases.streams())]
    wanted += [(case, f";cut={at}") for case in cases.streams() for at in offsets(case)]
    folder = tmp_path_factory.mktemp("recorded")
    with replay(folder) as port:
        providers = "".join(
            f"  {name_of(case, option)}: {{kind: openai, allow_http: true, allow_private: true,"
            f' base_url: "http://127.0.0.1:{port}/{case.name}{option}/v1"}}\n'
            for case, option in wanted
        )
        chains = "".join(
            f"  c.{name_of(case, option)}: [{name_of(case, option)}/m]\n" for case, option in wanted
        )
        text = (
            "defaults: {retry: {same_target: 0}}\nprices: {unpriced: allow}\n"
            f"providers:\n{providers}chains:\n{chains}"
        )
        with Running(text, folder / "state") as running:
            yield running


@pytest.fixture(scope="module")
def client(gateway):
    with openai.OpenAI(base_url=gateway.base_url, api_key="x", max_retries=0) as made:
        yield made


def ask(client, case, option="", **more):
    return client.chat.completions.create(
        model=f"c.{name_of(case, option)}", messages=[{"role": "user", "content": "hi"}], **more
    )


def tools_of(calls):
    return [{"name": c["name"], "arguments": json.loads(c["arguments"] or "{}")} for c in calls]


def read(stream):
    """(text, tool calls, finish) of a stream, and the error that ended it, if one did."""
    text, finish, calls = "", None, {}
    try:
        for chunk in stream:
            for choice in chunk.choices:
                if choice.index:
                    continue
                assert finish is None, "nothing may follow the finish"
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    known = calls.setdefault(call.index, {"name": "", "arguments": ""})
                    known["name"] += call.function.name or ""
                    known["arguments"] += call.function.arguments or ""
                finish = choice.finish_reason
    except openai.APIError as error:
        return text, list(calls.values()), finish, error
    return text, list(calls.values()), finish, None


@pytest.mark.parametrize("case", cases.wholes(), ids=repr)
def test_a_recorded_answer_arrives_whole(client, case):
    answer = ask(client, case)
    assert (answer.choices[0].message.content or "") == case.expect["text"]
    calls = [
        {"name": c.function.name, "arguments": c.function.arguments}
        for c in answer.choices[0].message.tool_calls or []
    ]
    assert tools_of(calls) == [
        {"name": c["name"], "arguments": c["arguments"]} for c in case.expect["tool_calls"]
    ]


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_a_recorded_stream_arrives_whole_or_as_an_error(client, case):
    expect = case.expect or {}
    whole = expect.get("openai_finish_reason") not in {None, "error"}
    try:
        stream = ask(client, case, stream=True)
    except openai.APIStatusError as refused:
        assert not whole
        assert refused.response.headers["x-should-retry"] == "false"
        return
    text, calls, finish, error = read(stream)
    if not whole:
        assert error is not None
        assert finish is None
        return
    assert error is None
    assert finish in {"stop", "length", "tool_calls", "content_filter"}
    assert text in {expect["text"], expect["text"][: len(expect["text"]) // 2]}
    assert tools_of(calls) == [
        {"name": c["name"], "arguments": c["arguments"]} for c in expect["tool_calls"]
    ]


@pytest.mark.parametrize("case", cases.streams(), ids=repr)
def test_a_cut_stream_is_never_told_as_a_success(client, case):
    for at in offsets(case):
        try:
            stream = ask(client, case, f";cut={at}", stream=True)
        except openai.APIStatusError as refused:
            assert refused.status_code in {400, 429, 502, 503, 504}
            continue
        text, _, finish, error = read(stream)
        if error is None:  # the finish had come before the cut: then all of it is there
            assert finish is not None
            assert text in {case.expect["text"], case.expect["text"][: len(text)]}
            assert b'"finish_reason":' in case.body[:at].replace(b" ", b"")
        else:
            assert finish is None
            assert case.expect is None or case.expect["text"].startswith(text)
