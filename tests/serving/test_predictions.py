"""Task models behind HTTP: each answer is what the same model says in this process, whoever else asks at the time."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from prediction_lab import close, make_ensemble, make_task_model
from serving_lab import RunningServer

from luban.inference.predictor import Predictor

PREDICT = "/v1/predict"
TEXTS = ["Anna saw Paris.", "Boris went to Lima", "电影好看", "great film!", "who is in Paris?"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tasks")
    made = {task: make_task_model(base / task, task) for task in ("classification", "tagging", "question_answering", "embedding", "masked")}
    return {**made, "ensemble": make_ensemble(base / "ensemble")}


@pytest.fixture(scope="session")
def serve(folders) -> Iterator:
    """A server for a task, started once."""
    running: dict[str, RunningServer] = {}

    def get(task: str) -> RunningServer:
        if task not in running:
            running[task] = RunningServer(folders[task], name=task)
        return running[task]

    yield get
    for one in running.values():
        assert one.stop() == 0, "\n".join(one.lines)


CLIENT = httpx.Client(timeout=60)


def post(server: RunningServer, path: str, body: object) -> httpx.Response:
    return CLIENT.post(server.url + path, json=body)


ITEMS = {
    "classification": [*TEXTS, {"text": "Anna", "pair": "Boris"}],
    "ensemble": TEXTS,
    "tagging": [*TEXTS, "", "Anna saw 🙂 Boris " * 60],
    "question_answering": [{"question": "who saw Paris?", "context": text} for text in TEXTS],
    "masked": [{"text": "Anna [MASK] Paris", "top": 3}, "[MASK] went [MASK]"],
    "embedding": [*TEXTS, {"query": "who", "documents": TEXTS}, {"text": "Anna", "dimensions": 4, "prompt": "query"}],
}


@pytest.mark.parametrize("task", ITEMS)
def test_predictions_are_those_of_the_model(serve, folders, task):
    server, expected = serve(task), Predictor.load(folders[task], device="cpu").predict(ITEMS[task])
    answer = post(server, PREDICT, {"model": task, "input": ITEMS[task]})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["model"] == task and said["task"] == ("classification" if task == "ensemble" else task) and said["usage"]["items"] == len(ITEMS[task])
    assert [one.pop("index") for one in said["data"]] == list(range(len(ITEMS[task])))
    assert close(said["data"], json.loads(json.dumps(expected)))
    alone = post(server, PREDICT, {"input": ITEMS[task][0]}).json()["data"]
    assert len(alone) == 1 and close(alone[0], {"index": 0, **json.loads(json.dumps(expected[0]))})


def test_a_stream_has_an_event_an_item(serve, folders):
    texts = [f"Anna saw {number}" for number in range(70)]
    expected = Predictor.load(folders["classification"], device="cpu").predict(texts)
    with httpx.stream("POST", serve("classification").url + PREDICT, json={"input": [*texts, {"pair": "no text"}], "stream": True}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    *some, last = map(json.loads, events[:-1])
    assert last["usage"]["items"] == 71 and last["task"] == "classification"
    by_index = {one.pop("index"): one for one in some}
    assert sorted(by_index) == list(range(71))
    assert by_index.pop(70)["error"]["param"] == "input.70"  # one bad item harms no other
    assert close([by_index[number] for number in range(70)], expected)


def test_concurrent_requests_share_batches(serve, folders):
    server = serve("classification")
    expected = Predictor.load(folders["classification"], device="cpu").predict(TEXTS)
    before = server.metric("luban_prediction_batch_items_sum"), server.metric("luban_prediction_batch_items_count")
    bodies = [{"input": text} for text in TEXTS * 8] + [{"input": {"text": 7}}]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: post(server, PREDICT, body), bodies))
    assert [answer.status_code for answer in answers] == [200] * 40 + [400]
    for answer, own in zip(answers[:-1], expected * 8, strict=True):
        assert close(answer.json()["data"], [{"index": 0, **own}])
    items, batches = server.metric("luban_prediction_batch_items_sum") - before[0], server.metric("luban_prediction_batch_items_count") - before[1]
    assert items == 40 and batches < 40
    assert server.metric("luban_predicted_items_total", outcome="done") >= 40


# ---- the customary forms ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def client(serve) -> openai.OpenAI:
    return openai.OpenAI(base_url=serve("embedding").url + "/v1", api_key="none", max_retries=0)


def test_embeddings_by_the_official_client(client, folders):
    predictor = Predictor.load(folders["embedding"], device="cpu")
    expected = np.array([one["vector"] for one in predictor.predict(TEXTS)])
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model="embedding", input=TEXTS, **encoding)
        found = [np.frombuffer(base64.b64decode(one.embedding), "<f4") if encoding.get("encoding_format") == "base64" and isinstance(one.embedding, str) else one.embedding for one in answer.data]
        np.testing.assert_allclose(np.array(found), expected, atol=1e-5)
        assert answer.object == "list" and answer.model == "embedding" and [one.index for one in answer.data] == list(range(5))
    tokens = sum(len(predictor.tokenizer.encode(text)) for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    short = np.array(client.embeddings.create(model="embedding", input=TEXTS[0], dimensions=8, user="me").data[0].embedding)
    np.testing.assert_allclose(short, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-5)
    ids = predictor.tokenizer.encode("anna saw paris")
    np.testing.assert_allclose(client.embeddings.create(model="embedding", input=[ids, ids]).data[1].embedding, predictor.predict(["anna saw paris"])[0]["vector"], atol=1e-5)


def test_base64_is_little_endian_float32(serve):
    plain, packed = (post(serve("embedding"), "/v1/embeddings", {"input": "Anna", "encoding_format": form}).json()["data"][0]["embedding"] for form in ("float", "base64"))
    np.testing.assert_array_equal(struct.unpack("<32f", base64.b64decode(packed)), np.float32(plain))


def test_embedding_mistakes_reach_the_client(client):
    for wrong in ({"input": ""}, {"input": []}, {"input": ["a", 3]}, {"input": "a", "dimensions": 999}, {"input": [[1, 10**6]]}, {"input": "a", "encoding_format": "hex"}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**{"model": "embedding", **wrong})
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model="embedding", messages=[{"role": "user", "content": "Hello"}])


def test_reranking(serve, folders):
    scores = Predictor.load(folders["embedding"], device="cpu").predict([{"query": "who saw Paris", "documents": TEXTS}])[0]["scores"]
    order = sorted(range(5), key=lambda number: -scores[number])
    body = {"model": "embedding", "query": "who saw Paris", "documents": [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]}
    said = post(serve("embedding"), "/v1/rerank", body).json()
    assert [one["index"] for one in said["results"]] == order and close([one["relevance_score"] for one in said["results"]], [scores[number] for number in order])
    assert said["results"][0]["document"] == {"text": TEXTS[order[0]]} and said["usage"]["total_tokens"] > 0
    few = post(serve("embedding"), "/v1/rerank", {**body, "top_n": 2, "return_documents": False}).json()["results"]
    assert [one["index"] for one in few] == order[:2] and "document" not in few[0]
    assert post(serve("embedding"), "/v1/rerank", {**body, "documents": []}).json()["error"]["param"] == "documents"
    assert post(serve("embedding"), "/v1/rerank", {**body, "documents": [7]}).json()["error"]["param"] == "documents.0"


# ---- other endpoints -------------------------------------------------------------------------------------------------------


def test_models_says_the_task(serve, server):
    for task, labels in (("classification", ["good", "bad", "中"]), ("masked", [])):
        known = httpx.get(serve(task).url + "/v1/models").json()["data"][0]
        assert known["luban"]["task"] == task and known["luban"]["labels"] == labels and known["luban"]["endpoints"] == [PREDICT]
        assert known["max_model_len"] == 64 and known["luban"]["parameters"] > 1000
    known = httpx.get(server.url + "/v1/models").json()["data"][0]["luban"]
    assert known["task"] == "causal" and known["chat"] and PREDICT in known["endpoints"] and "/v1/chat/completions" in known["endpoints"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"])
def test_the_wrong_endpoint_names_the_right_one(serve, path):
    answer = post(serve("classification"), path, {"messages": [{"role": "user", "content": "Hello"}]})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "wrong_endpoint"
    assert PREDICT in error["message"] and "classification" in error["message"]


def test_a_decoder_tells_next_words(server, loaded):
    said = post(server, PREDICT, {"input": ["What is", "春眠"], "top": 3}).json()
    assert said["task"] == "causal"
    expected = Predictor(loaded.model, loaded.tokenizer).predict([{"text": "What is", "top": 3}, {"text": "春眠", "top": 3}])
    assert close([one["next"] for one in said["data"]], [one["next"] for one in expected])
    with ThreadPoolExecutor(4) as pool:  # beside what it writes
        written = [pool.submit(post, server, "/v1/completions", {"prompt": "What", "max_tokens": 40, "temperature": 0}) for _ in range(2)]
        told = [pool.submit(post, server, PREDICT, {"input": "What is", "top": 3}) for _ in range(6)]
    assert {one.result().json()["choices"][0]["text"] for one in written} == {loaded.generate("What", maximum_tokens=40, temperature=0)}
    assert all(close(one.result().json()["data"][0]["next"], expected[0]["next"]) for one in told)
    assert "/v1/chat/completions" in post(server, "/v1/embeddings", {"input": "a"}).json()["error"]["message"]


def test_ids_of_a_text(serve):
    said = post(serve("classification"), "/tokenize", {"prompt": "anna", "add_special_tokens": False}).json()
    assert said["count"] == 1 and post(serve("classification"), "/detokenize", {"tokens": said["tokens"]}).json()["prompt"] == "anna"


# ---- mistakes, limits, ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "body", "param", "says"),
    [
        ("classification", {}, "input", "required"),
        ("classification", {"input": []}, "input", "nothing"),
        ("classification", {"input": None}, "input.0", "text"),
        ("classification", {"input": ["a", 7]}, "input.1", "text"),
        ("classification", {"input": [{"text": "a"}, {"test": "b"}]}, "input.1", "'text'"),
        ("classification", {"input": {"text": "a", "pair": [1]}}, "input.0", "'pair'"),
        ("classification", {"input": "a", "streem": True}, "streem", "did you mean stream"),
        ("classification", {"input": "a", "stream_options": {}}, "stream_options", "stream"),
        ("classification", {"input": "a", "model": "gpt-4"}, "model", "gpt-4"),
        ("masked", {"input": "no gap"}, "input.0", "blank"),
        ("masked", {"input": {"text": "[MASK]", "top": "x"}}, "input.0", "'top'"),
        ("masked", {"input": "[MASK]", "top": 0}, "top", "greater"),
        ("masked", {"input": "Anna " * 70 + "[MASK]"}, "input.0", "64"),
        ("question_answering", {"input": ["Who?"]}, "input.0", "'question'"),
        ("tagging", {"input": {"text": "Anna", "words": [[0, "x"]]}}, "input.0", "'words'"),
        ("embedding", {"input": {"text": "Anna", "prompt": "none"}}, "input.0", "prompt"),
        ("embedding", {"input": {"query": "Anna", "documents": "Boris"}}, "input.0", "'documents'"),
    ],
)
def test_a_wrong_request_is_explained(serve, task, body, param, says):
    answer = post(serve(task), PREDICT, body)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and says in error["message"], error


@pytest.fixture(scope="module")
def narrow(folders) -> Iterator[RunningServer]:
    running = RunningServer(folders["classification"], maximum_items=3, maximum_characters=100, maximum_waiting_items=4, batch_window_seconds=1.0, rows=8)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


def test_limits(narrow):
    assert post(narrow, PREDICT, {"input": ["a"] * 4}).json()["error"]["code"] == "too_many_items"
    assert post(narrow, PREDICT, {"input": ["a" * 60, "b" * 60]}).json()["error"]["code"] == "too_many_characters"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, narrow, PREDICT, {"input": ["a"] * 3})
        narrow.wait_for(lambda: narrow.metric("luban_prompt_tokens_total") >= 3)
        refused = post(narrow, PREDICT, {"input": ["a"] * 2})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
    assert post(narrow, PREDICT, {"input": ["a"] * 3}).status_code == 200


def test_a_client_that_leaves_takes_its_items_along(folders):
    server = RunningServer(folders["tagging"], rows=1)
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps({"input": ["Anna saw Boris " * 300] * 200}).encode()
    with contextlib.closing(socket.create_connection((host, int(port)))) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        server.wait_for(lambda: server.metric("luban_predicted_items_total", outcome="done") >= 1)
    server.wait_for(lambda: server.metric("luban_predicted_items_total", outcome="abort") > 100)
    assert post(server, PREDICT, {"input": "Anna"}).status_code == 200
    assert server.stop() == 0


def test_a_short_request_does_not_wait_for_a_long_one(folders):
    server = RunningServer(folders["tagging"], rows=2)
    ended: list[float] = []

    def long() -> None:
        post(server, PREDICT, {"input": ["Anna saw Boris " * 200] * 100})
        ended.append(time.monotonic())

    thread = threading.Thread(target=long)
    thread.start()
    server.wait_for(lambda: server.metric("luban_predicted_items_total", outcome="done") >= 1)
    assert post(server, PREDICT, {"input": "Anna"}).status_code == 200
    assert not ended
    # and a drain finishes what was begun
    server.send_signal(signal.SIGTERM)
    server.wait_for(lambda: httpx.get(server.url + "/ready").status_code == 503)
    assert post(server, PREDICT, {"input": "Anna"}).json()["error"]["code"] == "shutting_down"
    thread.join(60)
    assert ended and server.wait() == 0
    assert not any("Traceback" in line for line in server.lines)


def test_a_drain_ends_after_its_time(folders):
    server = RunningServer(folders["tagging"], rows=1, drain_seconds=0.2)
    events: list[str] = []

    def read() -> None:
        with httpx.stream("POST", server.url + PREDICT, json={"input": ["Anna saw Boris " * 200] * 300, "stream": True}, timeout=60) as response:
            events.extend(line for line in response.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    server.wait_for(lambda: server.metric("luban_predicted_items_total", outcome="done") >= 1)
    assert server.stop() == 0
    thread.join(20)
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_what_the_server_says_at_its_start(serve):
    lines = "\n".join(serve("classification").lines)
    assert "classification: classification," in lines and "parameters in float32 on cpu, 32 items at once" in lines and "/v1/predict -H" in lines
