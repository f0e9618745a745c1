"""Where the time went: all of it, over a real kill -9, with the work that was lost; energy by meters that are planted and by the model that is stated."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from guard_lab import Child, lines, train

from luban.training import goodput
from luban.training.config import EnergyConfig
from luban.training.energy import CORE_WATTS, Energy, Model, Nvml, Rapl
from luban.training.goodput import SECTIONS, Clock

SLOW = """
import time
from luban.objectives.causal import Causal
from luban.objectives.config import CausalConfig

class Slow(Causal):
    name = "causal"

    def __init__(self):
        super().__init__(CausalConfig())

    def prepare(self, batch, model):
        if model.training:
            time.sleep(0.04)
        return batch
"""


def written(folder: Path) -> dict:
    return json.loads((folder / "training" / "time.json").read_bytes())


def test_all_time_is_somebodys_and_lost_work_is_counted_after_a_kill(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(goodput, "HEARTBEAT_SECONDS", 0.05)
    (tmp_path / "slow.py").write_text(SLOW)
    out = tmp_path / "run" / "model"
    partial = out.with_name("model.partial")
    fields = {"objective": f"{tmp_path / 'slow.py'}:Slow", "length": "20 steps", "validation": {"every": "10 steps"}, "checkpoint": {"every": "15 steps"}}
    first = Child(tokens, out, **fields)
    first.until(lambda: (partial / "training" / "time.json").exists() and written(partial)["seconds"]["steps"] > 5 * 0.04)
    first.send(signal.SIGKILL)
    first.end()
    assert first.returncode == -signal.SIGKILL
    steps = {entry["step"]: entry["seconds"] for entry in lines(partial, "log.jsonl") if "seconds" in entry}
    killed = written(partial)
    kept = max([0, *(int(path.name.removeprefix("step-")) for path in (partial / "training" / "checkpoints").glob("step-????????"))])
    lost = killed["seconds"]["steps"] + killed["seconds"]["data"] - steps.get(kept, 0.0)
    time.sleep(0.3)
    second = Child(tokens, out, **fields)
    assert "Traceback" not in second.end() and second.returncode == 0
    told = written(out)
    seconds = told["seconds"]
    assert told["attempts"] == 2 and told["state"] == "done" and told["away"] == 0
    assert sum(seconds.values()) == pytest.approx(told["heartbeat"] - told["begun"], abs=0.05), "no second is missing, and none is counted twice"
    assert seconds["lost"] == pytest.approx(lost, abs=0.01) and lost > 0.04
    assert seconds["restarts"] > 0.3, "from the last sign of life to where it stood before"
    last = [entry for entry in lines(out, "log.jsonl") if "seconds" in entry][-1]
    assert seconds["steps"] + seconds["data"] == pytest.approx(last["seconds"], abs=0.01) and last["seconds"] > 20 * 0.04
    cost = json.loads((out / "manifest.json").read_bytes())["cost"]
    assert cost["goodput"] == pytest.approx(seconds["steps"] / sum(seconds.values()), rel=0.02) and cost["kilowatt_hours"] > 0
    logged = [entry for entry in lines(out, "log.jsonl") if "time" in entry]
    assert [entry["step"] for entry in logged] == [10, 20] and set(logged[0]["time"]) >= {f"{name}_seconds" for name in SECTIONS}


def test_leaving_on_request_is_no_breakdown_and_a_damaged_file_no_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), Clock(tmp_path).running():
        raise KeyboardInterrupt
    time.sleep(0.1)
    clock = Clock(tmp_path)
    assert clock.away > 0.1 and clock.spent["restarts"] == 0 and clock.name == "restarts" and clock.attempts == 2
    for text in ("", "[]", '{"seconds": 3}', '{"seconds": {"steps": NaN, "data": "x"}, "attempts": true, "away": -1}', "[" * 100_000):
        (tmp_path / "time.json").write_text(text)
        assert sum(Clock(tmp_path).now().values()) < 1


def test_what_is_far_above_the_usual_is_a_stall(monkeypatch):
    clock, now = Clock(), [0.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    clock.since = 0.0
    for number in range(12):
        clock.begin_step()
        now[0] += 0.1
        clock.enter("steps")
        now[0] += 10.0 if number == 10 else 0.9
        assert clock.end_step() == pytest.approx(10.1 if number == 10 else 1.0)
    assert clock.spent["stalls"] == pytest.approx(9.1) and clock.spent["steps"] + clock.spent["data"] == pytest.approx(12.0)
    clock.went_back(15.1)  # of 21.1 that were made
    assert clock.spent["lost"] == pytest.approx(6.0) and sum(clock.now().values()) == pytest.approx(now[0])


def powercap(root: Path, number: int, name: str, used: int, largest: int = 10**9) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", used), ("max_energy_range_uj", largest)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_meters_are_read_and_wrap(tmp_path):
    package, other = powercap(tmp_path, 0, "package-0", 999_000_000), powercap(tmp_path, 1, "package-1", 5_000_000)
    powercap(tmp_path, 2, "psys", 0)
    meter = Rapl(tmp_path)
    package.write_text("2000000")  # it has wrapped: 3 joules
    other.write_text("6500000")
    assert meter.joules() == pytest.approx(4.5) and "2 RAPL" in meter.text
    assert Energy(EnergyConfig(), tmp_path).source.startswith("meter")
    used = {b"GPU-a": 1000, b"GPU-b": 5000}

    def handle(identity, pointer):
        pointer._obj.value = list(used).index(identity) + 1
        return 0

    def energy(handle, pointer):
        pointer._obj.value = list(used.values())[handle.value - 1]
        return 0

    cards = Nvml(["GPU-a", "GPU-b"], SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByUUID=handle, nvmlDeviceGetTotalEnergyConsumption=energy))
    used[b"GPU-b"] = 12_000
    assert cards.joules() == pytest.approx(7.0)
    with pytest.raises(OSError, match="status 3"):
        Nvml(["GPU-a"], SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByUUID=lambda *_: 3))


def test_without_a_meter_the_model_is_stated_and_so_is_a_power_that_is_known(tmp_path):
    model = Energy(EnergyConfig(), tmp_path)
    before = time.process_time()
    thread = threading.Thread(target=lambda: sum(range(3_000_000)))
    thread.start()
    thread.join()
    assert model.joules() >= CORE_WATTS * (time.process_time() - before) * 0.8 and model.source == Model.text
    stated = Energy(EnergyConfig(watts=350), tmp_path)
    time.sleep(0.05)
    assert stated.joules() >= 350 * 0.05 and "350 W" in stated.source
    clock = Clock(None, EnergyConfig(watts=3.6e6, grams_per_kilowatt_hour=100))
    time.sleep(0.02)
    told = clock.report()
    assert told["grams_of_co2"] == pytest.approx(100 * told["kilowatt_hours"]) and told["kilowatt_hours"] >= 0.02


def test_the_figures_are_metrics_too(tmp_path, tokens):
    train(tmp_path, tokens, length="4 steps", track={"tensorboard": False, "prometheus_file": str(tmp_path / "run.prom")})
    metrics = (tmp_path / "run.prom").read_text()
    assert 'luban_time_goodput{run="out"}' in metrics and 'luban_time_kilowatt_hours{run="out"}' in metrics
