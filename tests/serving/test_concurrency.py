"""Many at once: batched, each answer as if alone; those who leave free their place; too many are sent away."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_lab import RunningServer

from luban.inference.generate import LoadedModel

COMPLETION = "/v1/completions"
ENDLESS = {"prompt": "What", "temperature": 0, "max_tokens": 4000, "stream": True}


@pytest.fixture(scope="module")
def narrow(model_folder) -> Iterator[RunningServer]:
    """A server with two slots and room for two more."""
    running = RunningServer(model_folder, slots=2, maximum_waiting=2)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@contextlib.contextmanager
def leaving_client(server: RunningServer, body: dict) -> Iterator[socket.socket]:
    """A request whose connection is cut at the end."""
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {COMPLETION} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


def running(server: RunningServer) -> int:
    return int(server.metric("luban_num_requests_running"))


def test_batched_answers_are_the_answers_given_alone(server, loaded: LoadedModel):
    prompts = [f"{text} {number}" for number in range(4) for text in ("What is", "春眠不觉晓")]
    settings = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_k": 9, "seed": 4}]
    requests = [{"prompt": prompt, "max_tokens": 20 + 7 * index, **settings[index % 3]} for index, prompt in enumerate(prompts)]
    alone = [loaded.generate(request["prompt"], maximum_tokens=request["max_tokens"], **settings[index % 3]) for index, request in enumerate(requests)]
    before, steps = server.metric("luban_iteration_sequences_sum"), server.metric("luban_iteration_sequences_count")
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda body: httpx.post(server.url + COMPLETION, json=body, timeout=60).json(), requests))
    assert [answer["choices"][0]["text"] for answer in answers] == alone
    mean = (server.metric("luban_iteration_sequences_sum") - before) / (server.metric("luban_iteration_sequences_count") - steps)
    assert mean > 1.5, "sequences a forward pass"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(narrow, stream):
    aborted = narrow.metric("luban_request_success_total", finished_reason="abort")
    with leaving_client(narrow, {**ENDLESS, "stream": stream}):
        narrow.wait_for(lambda: running(narrow) == 1)
    narrow.wait_for(lambda: running(narrow) == 0, seconds=5)
    assert narrow.metric("luban_request_success_total", finished_reason="abort") == aborted + 1


def test_a_full_queue_sends_away(narrow):
    with contextlib.ExitStack() as clients:
        for count in range(1, 5):
            clients.enter_context(leaving_client(narrow, ENDLESS))
            narrow.wait_for(lambda count=count: running(narrow) + narrow.metric("luban_num_requests_waiting") == count)
        assert (running(narrow), narrow.metric("luban_num_requests_waiting")) == (2, 2)
        assert narrow.metric("luban_kv_cache_usage_perc") == 1
        refused = httpx.post(narrow.url + COMPLETION, json={"prompt": "a", "max_tokens": 1})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(narrow.url + "/health").status_code == httpx.get(narrow.url + "/ready").status_code == 200
    narrow.wait_for(lambda: running(narrow) + narrow.metric("luban_num_requests_waiting") == 0)
    assert httpx.post(narrow.url + COMPLETION, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_those_who_wait_are_served_in_turn(narrow, loaded: LoadedModel):
    expected = loaded.generate("What", temperature=0, maximum_tokens=30)
    answer = httpx.post(narrow.url + COMPLETION, json={"prompt": ["What"] * 4, "temperature": 0, "max_tokens": 30}, timeout=30).json()
    assert [choice["text"] for choice in answer["choices"]] == [expected] * 4


def test_a_request_that_takes_too_long_is_given_up(start):
    server = start(request_seconds=0.3)
    whole = httpx.post(server.url + COMPLETION, json={**ENDLESS, "stream": False}, timeout=30)
    assert whole.status_code == 504 and whole.json()["error"]["code"] == "timeout" and "0.3 s" in whole.json()["error"]["message"]
    events = httpx.post(server.url + COMPLETION, json=ENDLESS, timeout=30).text.strip().split("\n\n")
    assert len(events) > 2 and json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    server.wait_for(lambda: running(server) == 0)


def test_metrics_are_prometheus_text_and_add_up(server):
    from prometheus_client.parser import text_string_to_metric_families

    names = ("luban_prompt_tokens_total", "luban_generation_tokens_total", "luban_time_to_first_token_seconds_count", "luban_inter_token_latency_seconds_count", "luban_e2e_request_latency_seconds_count")
    before = [server.metric(name) for name in names]
    answer = httpx.post(server.url + COMPLETION, json={"prompt": "What is this", "max_tokens": 9, "temperature": 0}).json()
    used = answer["usage"]
    gained = [server.metric(name) - value for name, value in zip(names, before, strict=True)]
    assert gained == [used["prompt_tokens"], 9, 1, 8, 1]
    response = httpx.get(server.url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(response.text)}
    vllm = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds",
            "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"}  # fmt: skip
    assert {f"luban_{name}" for name in vllm} <= families
    assert server.metric("luban_http_requests_total", handler=COMPLETION, status="200") >= 1


def test_a_slow_reader_does_not_hold_up_others(narrow):
    with leaving_client(narrow, ENDLESS):
        narrow.wait_for(lambda: running(narrow) == 1)
        begun = time.monotonic()
        assert httpx.post(narrow.url + COMPLETION, json={"prompt": "a", "max_tokens": 5}, timeout=30).status_code == 200
        assert time.monotonic() - begun < 5
