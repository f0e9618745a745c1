"""Writers: real Prometheus scrapes; a writer that fails, waits or is missing hurts no run. What MLflow, trackio and W&B are told is compared with
recorded fakes of their public interfaces here, and with the real packages by scripts/check_trackers.py."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import types
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_alerts import train

from luban.board.library import Library
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, LubanError
from luban.training import writers
from luban.training.config import TrackConfig
from luban.training.writers import Behind, Safe, open_writers


def metrics_of(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples if sample.labels.get("run") == "out"}


def test_prometheus_pulls_what_the_log_holds(tokens, tmp_path, capsys):
    pulled: list[dict[str, float]] = []

    def scrape(run) -> None:
        if run.step == 3:
            address = next(word for line in capsys.readouterr().err.splitlines() if line.startswith("metrics:") for word in line.split() if word.startswith("http"))
            pulled.append(metrics_of(urllib.request.urlopen(address, timeout=10).read().decode()))

    file = tmp_path / "luban.prom"
    artifact = train(tokens, tmp_path, scrape, length="5 steps", track={"tensorboard": False, "prometheus": "127.0.0.1:0", "prometheus_file": str(file)})
    log = [json.loads(line) for line in (artifact.path / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, scores = [entry for entry in log if "loss" in entry], [entry["validation"] for entry in log if "validation" in entry]
    assert pulled[0]["luban_train_step"] == 3 and pulled[0]["luban_train_loss"] == steps[2]["loss"] and pulled[0]["luban_train_steps_total"] == 3
    assert abs(pulled[0]["luban_train_last_step_timestamp_seconds"] - time.time()) < 60
    last = metrics_of(file.read_text())
    assert last["luban_train_loss"] == steps[4]["loss"] and last["luban_train_tokens"] == steps[4]["tokens"] and last["luban_validation_loss"] == scores[-1]["loss"]
    assert last["luban_train_memory_bytes"] == steps[4]["memory_bytes"] > 10**7


def test_a_run_tells_about_itself_before_it_ends(tokens, tmp_path):
    found: list[dict] = []
    seen: list[dict] = []

    def look(run) -> None:
        found.append(json.loads((run.folder / "about.json").read_bytes()))
        seen.append(Library(tmp_path).series("out", 100, None, {}))

    artifact = train(tokens, tmp_path, look, length="4 steps", track={"tensorboard": False})
    about = found[0]
    assert about["steps"] == 4 and about["config"]["optimizer"]["betas"] and about["config"]["length"] and about["objective"] == "causal" and about["identity"].startswith("out-")
    entries = [json.loads(line) for line in (artifact.path / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["data"]["tokens/train"] for entry in entries if "data" in entry][-1] == 4 * 2  # two rows a step
    assert about["rows"]["tokens/train"] > 0
    assert [one["tables"][""]["places"]["step"][-1] for one in seen] == [1, 2, 3, 4]  # the board over the same run, while it lasts and after
    assert seen[2]["run"]["state"] == "running" and seen[2]["run"]["steps"] == 4 and Library(tmp_path).runs()[0]["state"] == "finished"
    losses = Library(tmp_path).series("out", 100, None, {})["tables"][""]["series"]["loss"][0]
    assert losses == [pytest.approx(entry["loss"], rel=1e-6) for entry in entries if "loss" in entry]


def test_a_taken_port_and_a_useless_file_are_errors(tmp_path):
    first = open_writers(tmp_path, build(TrackConfig, {"tensorboard": False, "prometheus": "127.0.0.1:0"}), "a", "a-1")
    port = first[0].writer.server.server_address[1]
    with pytest.raises(LubanError, match="cannot listen"):
        open_writers(tmp_path, build(TrackConfig, {"tensorboard": False, "prometheus": f"127.0.0.1:{port}"}), "a", "a-1")
    first[0].close()
    for name in ("x.txt", "none/x.prom"):
        with pytest.raises(ConfigError, match=r"\.prom"):
            open_writers(tmp_path, build(TrackConfig, {"tensorboard": False, "prometheus_file": str(tmp_path / name)}), "a", "a-1")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_clear_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LubanError, match=rf"pip install -e .\.\[{name}\]"):
        open_writers(tmp_path, build(TrackConfig, {"tensorboard": False, name: "x"}), "a", "a-1")


class Recorder:
    """A writer that keeps what it is told; ``wait`` holds it up, ``fails`` breaks it."""

    def __init__(self, wait: threading.Event | None = None, fails: bool = False):
        self.told: list = []
        self.wait, self.fails, self.closed = wait, fails, False

    def scalars(self, group, values, step) -> None:
        if self.wait:
            self.wait.wait(10)
        if self.fails:
            raise OSError("no route to host")
        self.told.append((group, values, step))

    def close(self) -> None:
        self.closed = True


def test_a_writer_that_fails_is_named_once_and_left_out(capsys):
    writer = Safe("MLflow", Recorder(fails=True))
    for step in range(3):
        writer.scalars("train", {"loss": 1.0}, step)
    writer.close()
    said = capsys.readouterr().err
    assert said.count("MLflow gets no more numbers") == 1 and "no route to host" in said


def test_a_slow_writer_never_holds_the_loop_and_loses_nothing(monkeypatch, capsys):
    go, slow = threading.Event(), None
    slow = Recorder(wait=go)
    writer, begun = Behind("W&B", slow), time.monotonic()
    values = {"loss": 0.0}
    for step in range(500):
        values["loss"] = step  # the writer must hold a copy
        writer.scalars("train", values, step)
    assert time.monotonic() - begun < 0.5 and not slow.told
    go.set()
    writer.close()
    assert slow.told == [("train", {"loss": step}, step) for step in range(500)] and slow.closed
    monkeypatch.setattr(writers, "CLOSING_SECONDS", 0.1)
    stuck = Behind("trackio", Recorder(wait=threading.Event()))
    stuck.scalars("train", {"loss": 1.0}, 1)
    stuck.close()
    assert "trackio did not take everything in time" in capsys.readouterr().err


# ---- recorded fakes of what is used of three packages, with the names and arguments of their documentation


def fake_wandb(calls: list) -> types.ModuleType:
    module = types.ModuleType("wandb")
    run = types.SimpleNamespace(log=lambda data, step: calls.append(("log", data, step)), finish=lambda: calls.append("finish"))
    module.init = lambda *, project, name, id, resume: calls.append(("init", project, name, id, resume)) or run
    return module


def fake_trackio(calls: list) -> types.ModuleType:
    module = types.ModuleType("trackio")
    run = types.SimpleNamespace(log=lambda metrics, step: calls.append(("log", metrics, step)), finish=lambda: calls.append("finish"))
    module.init = lambda project, name, *, resume, embed, auto_log_gpu, auto_log_cpu: calls.append(("init", project, name, resume)) or run
    return module


def fake_mlflow(calls: list) -> tuple[types.ModuleType, types.ModuleType]:
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    known: dict[str, types.SimpleNamespace] = {}

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(("experiment", name))
            return "7"

        def search_runs(self, experiment_ids, filter_string):
            return [run for identity, run in known.items() if filter_string == f"tags.`luban.run` = '{identity}'"]

        def create_run(self, experiment_id, *, run_name, tags):
            known[tags["luban.run"]] = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r" + tags["luban.run"]))
            return known[tags["luban.run"]]

        def update_run(self, run_id, *, status):
            calls.append((run_id, status))

        def log_batch(self, run_id, *, metrics):
            calls.extend((run_id, *metric) for metric in metrics)

        def set_terminated(self, run_id):
            calls.append((run_id, "FINISHED"))

    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    module.MlflowClient, module.entities = MlflowClient, entities
    return module, entities


def test_what_the_three_are_told(tmp_path, monkeypatch):
    calls: list = []
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    module, entities = fake_mlflow(calls)
    for name, fake in (("wandb", fake_wandb(calls)), ("trackio", fake_trackio(calls)), ("mlflow", module), ("mlflow.entities", entities)):
        monkeypatch.setitem(sys.modules, name, fake)
    for settings, begin, logged, end in (
        ({"wandb": "p"}, ("init", "p", "base", "base-1", "allow"), ("log", {"train/loss": 2.0}, 3), "finish"),
        ({"trackio": "p"}, ("init", "p", "base-1", "allow"), ("log", {"train/loss": 2.0}, 3), "finish"),
        ({"mlflow": "p", "mlflow_server": "http://x"}, ("client", "http://x"), ("rbase-1", "train/loss", 2.0, 3), ("rbase-1", "FINISHED")),
    ):
        calls.clear()
        for _ in range(2):  # a run that goes on is the same run there
            (writer,) = open_writers(tmp_path, build(TrackConfig, {"tensorboard": False, **settings}), "base", "base-1")
            writer.scalars("train", {"loss": 2.0}, 3)
            writer.scalars("validation", {"f1:micro(a)": math.nan}, 3)
            writer.close()
        assert calls[0] == begin and calls.count(logged) == 2 and calls[-1] == end
    assert any(call[1:2] == ("validation/f1_micro_a_",) for call in calls if isinstance(call, tuple))
