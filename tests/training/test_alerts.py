"""Alerts: each rule is made to happen in a real run, and heard by a real web server and a real command."""

from __future__ import annotations

import http.server
import json
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.training import alerts
from luban.training.alerts import Alerts
from luban.training.config import AlertsConfig


class Hook:
    """A web server that keeps what is posted to it, and answers with ``status``, or not at all (0)."""

    def __init__(self, status: int = 200):
        self.got: list[dict] = []
        self.held = threading.Event()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.got.append({"path": self.path, **json.loads(self.rfile.read(int(self.headers["content-length"])))})
                if not status:
                    hook.held.wait(20)
                self.send_response(status or 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/in?key=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.held.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.stop()


def test_every_rule_speaks_when_its_cause_is_there(tokens, tmp_path, monkeypatch, hook):
    """One run in which all of it happens: two steps of NaN, gradients that climb, a pause, a slow end, a disk that is too small."""
    from luban.objectives.causal import Causal

    plain, calls, moments, pauses = Causal.terms, [], [], []

    def troubled(self, model, batch):
        terms = plain(self, model, batch)
        if torch.is_grad_enabled():
            calls.append(1)
            terms["loss"].sum = terms["loss"].sum * (float("nan") if len(calls) in (4, 5) else -1.0)  # up, not down
            moments.append(time.monotonic())
            if len(calls) > 100:
                time.sleep(5 * (moments[99] - moments[19]) / 80)  # of what a step took before
        return terms

    def pause(run) -> None:
        if run.step == 8:
            begun = time.monotonic()
            while not any(alert["rule"] == "no_step" for alert in hook.got) and time.monotonic() - begun < 15:
                time.sleep(0.02)
            pauses.append(time.monotonic() - begun)

    monkeypatch.setattr(Causal, "terms", troubled)
    listener = tmp_path / "listen.py"
    listener.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')")
    command = shlex.join([sys.executable, "-S", "-E", str(listener), str(tmp_path / "heard of it.jsonl")])
    rules = {"loss_not_finite": 2, "no_step_minutes": 0.01, "throughput": 0.5, "validation_rising": 2, "disk_free": "1000 TiB"}
    monkeypatch.setattr(alerts, "LOOK_SECONDS", 0.1)
    artifact = train(tokens, tmp_path, pause, length="124 steps", validation={"every": "31 steps"}, track={"tensorboard": False, "alerts": {**rules, "webhook": hook.url, "command": command}})

    folder = artifact.path / "training"
    logged = [json.loads(line) for line in (folder / "alerts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(alert["rule"] for alert in logged) == sorted(["loss_not_finite", "no_step", "throughput", "validation_rising", "disk_free"])  # each once, for an hour
    said = {alert["rule"]: alert for alert in logged}
    assert said["loss_not_finite"]["step"] == 5 and said["loss_not_finite"]["value"] == 2
    assert said["no_step"]["value"] > said["no_step"]["threshold"] and said["throughput"]["value"] < said["throughput"]["threshold"]
    scores = [json.loads(line)["validation"]["loss"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines() if '"validation"' in line]
    assert scores == sorted(scores) and said["validation_rising"]["step"] == 62 and said["validation_rising"]["value"] == scores[2]
    heard = [json.loads(line) for line in (tmp_path / "heard of it.jsonl").read_text().splitlines()]
    by_rule = {alert["rule"]: alert for alert in hook.got}
    assert {alert["rule"] for alert in heard} == set(by_rule) == set(said)
    assert all({**said[rule], "path": "/in?key=1"} == by_rule[rule] for rule in said) and all(alert in heard for alert in logged)
    assert pauses and pauses[0] < 15 and artifact.metrics["steps"] == 124


def train(tokens: Path, folder: Path, watch, **fields):
    """A train stage with a function that looks in after each step."""
    from luban.foundation.kinds import KINDS
    from luban.pipeline.api import one_stage
    from luban.pipeline.runner import run_recipe

    shape = {"layers": 1, "hidden_size": 16, "heads": 2, "head_dim": 8, "feed_forward_size": 16, "maximum_positions": 64}
    settings = {"shape": shape, "sequence_length": 16, "batch_tokens": 32, "threads": 1, "optimizer": {"learning_rate": 1e-3}, "checkpoint": {"every": "1000 steps"}, **fields}
    return run_recipe(one_stage(KINDS["train"], (str(tokens),), out=folder / "out", seed=1, **settings), watch=watch)[0]


def told(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("trouble", ["refused", "status", "redirected", "silent", "missing command", "failing command", "hanging command"])
def test_a_delivery_that_fails_is_said_and_ends_nothing(tmp_path, monkeypatch, capsys, trouble):
    monkeypatch.setattr(alerts, "DELIVERY_SECONDS", 0.3)
    hook = Hook({"status": 500, "redirected": 302, "silent": 0}.get(trouble, 200))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = {"refused": f"http://127.0.0.1:{closed.getsockname()[1]}/secret"}.get(trouble, hook.url)
        command = {"missing command": "/no/such/program", "failing command": "false", "hanging command": "sleep 30"}.get(trouble, "")
        config = build(AlertsConfig, {"loss_not_finite": 1, "command": command} if command else {"loss_not_finite": 1, "webhook": address})
        watched = Alerts(config, tmp_path, "base")
        watched.open(0)
        begun = time.monotonic()
        watched.step(1, {"loss": float("nan"), "gradient_norm": 1.0})
        assert time.monotonic() - begun < 0.5  # the loop goes on at once
        watched.close()
    hook.stop()
    assert time.monotonic() - begun < 5
    warnings = told(capsys)
    assert "alert at step 1" in warnings and ("not delivered" in warnings or trouble == "silent") and "secret" not in warnings
    assert json.loads((tmp_path / "alerts.jsonl").read_text())["rule"] == "loss_not_finite"


def test_slow_is_less_than_the_share_of_the_usual_median(tmp_path):
    """100 steps at 100 tokens a second, then 49: the median of twenty is below half with the eleventh slow one. At 51 it never is."""
    for speed, expected in ((49.0, [111]), (51.0, [])):
        folder = tmp_path / str(speed)
        folder.mkdir()
        watched = Alerts(build(AlertsConfig, {"throughput": 0.5}), folder, "base")
        for step in range(1, 141):
            watched.step(step, {"loss": 1.0, "tokens_per_second": 100.0 if step <= 100 else speed})
        file = folder / "alerts.jsonl"
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == expected if expected else not file.exists()


def test_a_rule_speaks_again_after_its_silence(tmp_path, monkeypatch):
    watched = Alerts(build(AlertsConfig, {"loss_not_finite": 1, "repeat_minutes": 0.002}), tmp_path, "base")
    for step in range(1, 4):
        watched.step(step, {"loss": float("inf")})
    time.sleep(0.15)
    watched.step(4, {"loss": 1.0})
    watched.step(5, {"loss": float("inf")})
    assert [json.loads(line)["step"] for line in (tmp_path / "alerts.jsonl").read_text().splitlines()] == [1, 5]


def test_what_cannot_work_is_refused_before_step_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_HOOK", "ftp://x")
    for settings, match in (({"webhook_variable": "MY_HOOK"}, "MY_HOOK holds no http"), ({"webhook_variable": "NOT_SET"}, "NOT_SET"), ({"command": "say 'x"}, "cannot be split")):
        with pytest.raises(ConfigError, match=match):
            Alerts(build(AlertsConfig, settings), tmp_path, "base")
    with pytest.raises(ConfigError, match="webhook"):
        build(AlertsConfig, {"webhook": "file:///etc/passwd"})
    monkeypatch.setenv("MY_HOOK", "http://127.0.0.1:1/x")
    assert len(Alerts(build(AlertsConfig, {"webhook_variable": "MY_HOOK"}), tmp_path, "base").deliver.ways) == 1
