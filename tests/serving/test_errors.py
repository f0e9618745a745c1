"""Bad requests: OpenAI's error body, the right status, the field named; never a 500."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_lab import RunningServer

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def post(server, path: str, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, headers={"content-type": "application/json"}, timeout=30)


def check(response: httpx.Response, status: int, *, param: str | None = None, code: str | None = None, says: str = "") -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.status_code == status, error
    assert error["param"] == param and (code is None or error["code"] == code) and says in error["message"], error
    return error


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code", "says"),
    [
        (CHAT, {"model": "gpt-4", "messages": HELLO}, 404, "model", "model_not_found", "'gpt-4'"),
        (CHAT, b"{", 400, None, "invalid_json", "JSON"),
        (CHAT, b"[" * 100_000, 400, None, "invalid_json", "deeply"),
        (CHAT, b'{"messages": "\xff"}', 400, None, "invalid_json", "JSON"),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "invalid_json", "surrogates"),
        (CHAT, b'{"temperature": NaN}', 400, None, "invalid_json", "NaN"),
        (CHAT, b'{"seed": ' + b"9" * 5000 + b"}", 400, None, "invalid_json", ""),
        (CHAT, [], 400, None, "invalid_json", "object"),
        (CHAT, {}, 400, "messages", "missing_required_parameter", "required"),
        (CHAT, {"messages": []}, 400, "messages", None, ""),
        (CHAT, {"messages": [{"role": "king", "content": ""}]}, 400, "messages.0.role", None, "'king'"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "messages.0.content", "invalid_type", "string"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages.0.content", "unsupported_content", "text"),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, 400, "temperature", "invalid_type", "'hot'"),
        (CHAT, {"messages": HELLO, "temperature": -1}, 400, "temperature", "invalid_value", "-1"),
        (CHAT, {"messages": HELLO, "max_tokens": True}, 400, "max_tokens", "invalid_type", ""),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens", None, "1"),
        (CHAT, {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", None, "one field"),
        (CHAT, {"messages": HELLO, "temprature": 1}, 400, "temprature", "unknown_parameter", "did you mean temperature?"),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "tools"),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter", ""),
        (CHAT, {"messages": HELLO, "presence_penalty": 0.5}, 400, "presence_penalty", "unsupported_parameter", ""),
        (CHAT, {"messages": HELLO, "frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_parameter", ""),
        (CHAT, {"messages": HELLO, "logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter", ""),
        (CHAT, {"messages": HELLO, "top_logprobs": 3}, 400, "top_logprobs", None, "logprobs"),
        (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, 400, "stream_options", None, "stream"),
        (CHAT, {"messages": HELLO, "stop": [1]}, 400, "stop", None, "strings"),
        (CHAT, {"messages": HELLO, "max_tokens": 5000}, 400, "messages", "context_length_exceeded", "4096"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "messages", "context_length_exceeded", "9"),
        (COMPLETION, {"prompt": {"a": 1}}, 400, "prompt", None, "list"),
        (COMPLETION, {"prompt": ["a", 1]}, 400, "prompt", None, "list"),
        (COMPLETION, {"prompt": [5, 10**9]}, 400, "prompt", None, "1000000000"),
        (COMPLETION, {"prompt": [-1]}, 400, "prompt", None, "-1"),
        (COMPLETION, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", None, "echo"),
        (COMPLETION, {"prompt": "a", "n": 100}, 400, "n", "too_many_sequences", "72"),
        (COMPLETION, {"prompt": ["a"] * 100}, 400, "prompt", "too_many_sequences", "72"),
        (COMPLETION, {"prompt": "a", "best_of": 5}, 400, "best_of", "unsupported_parameter", ""),
        (COMPLETION, {"prompt": "a", "suffix": "b"}, 400, "suffix", "unsupported_parameter", ""),
        ("/tokenize", {}, 400, "prompt", None, "one of"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens.0", None, ""),
        ("/detokenize", {"tokens": [10**30]}, 400, "tokens", None, "no token id"),
    ],
)  # fmt: skip
def test_refusals(server, path, body, status, param, code, says):
    check(post(server, path, body), status, param=param, code=code, says=says)


def test_what_asks_for_nothing_is_accepted(server):
    neutral = {"user": "me", "metadata": {"a": "b"}, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto",
               "response_format": {"type": "text"}, "store": False, "service_tier": "auto", "n": 1, "stop": None, "seed": None, "top_p": None, "logprobs": None}  # fmt: skip
    assert post(server, CHAT, {"messages": HELLO, "max_tokens": 2, **neutral}).status_code == 200


def test_routes_and_methods(server):
    check(httpx.get(server.url + "/v2/models"), 404, says="/v2/models")
    check(httpx.get(server.url + CHAT), 405, says="GET")
    assert httpx.get(server.url + CHAT).headers["allow"] == "POST"


@pytest.fixture(scope="module")
def strict(model_folder) -> Iterator[RunningServer]:
    """A server that reads small bodies only, and lets the pages of one other site in."""
    running = RunningServer(model_folder, maximum_body_bytes=1000, cors_origins=["https://friend.example"])
    yield running
    assert running.stop() == 0


def test_large_bodies(strict):
    check(post(strict, CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}), 413, code="body_too_large", says="1000")

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    check(httpx.post(strict.url + CHAT, content=chunks()), 413, code="body_too_large")
    assert post(strict, CHAT, {"messages": HELLO, "max_tokens": 2}).status_code == 200


def test_other_web_pages_cannot_call(server, strict):
    body = {"messages": HELLO, "max_tokens": 2}
    check(httpx.post(server.url + CHAT, json=body, headers={"origin": "https://evil.example"}), 403, code="wrong_origin", says="evil.example")
    check(httpx.get(server.url + "/v1/models", headers={"host": "evil.example"}), 403, code="wrong_host")
    assert httpx.post(server.url + CHAT, json=body, headers={"origin": server.url}).status_code == 200
    check(httpx.post(strict.url + CHAT, json=body, headers={"origin": "https://evil.example"}), 403)
    answer = httpx.post(strict.url + CHAT, json=body, headers={"origin": "https://friend.example"})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://friend.example"
    asking = {"origin": "https://friend.example", "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert httpx.options(strict.url + CHAT, headers=asking).status_code == 200


def test_the_client_raises_its_own_errors(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.param == "tools" and caught.value.code == "unsupported_parameter"


def test_a_broken_request_line_does_not_harm(server):
    host, port = server.url.removeprefix("http://").split(":")
    for junk in (b"\x00\xff\r\n\r\n", b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(junk)
            assert b" 4" in connection.recv(100)[:20]
    assert httpx.get(server.url + "/health").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "n", "logprobs", "top_logprobs", "echo", "best_of", "tools", "user", "max_completion_tokens")
LIKELY = st.sampled_from(["tiny", True, False, None, 0, 1, 2, 0.5, 1e-9, 1e300, -1, 2**63, "", "a", ["a", "b"], [1, 2], [[1], [2, 3]], {"include_usage": True}])
BODIES = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 2, 3])},
    optional={"prompt": st.text(max_size=20) | JSON, "messages": st.just(HELLO) | JSON} | {name: LIKELY | JSON for name in FIELDS},
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([CHAT, COMPLETION, "/tokenize", "/detokenize"]), body=JSON | BODIES | BODIES)
def test_no_body_makes_the_server_fail(server, path, body):
    with httpx.Client() as client:
        response = client.post(server.url + path, content=json.dumps(body).encode(), timeout=30)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@settings(max_examples=30, deadline=None)
@given(raw=st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(server, raw):
    with httpx.Client() as client:
        assert client.post(server.url + CHAT, content=raw).status_code == 400
