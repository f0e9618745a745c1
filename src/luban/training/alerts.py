"""Alerts: rules over a run that speak to the log, a webhook and a command. They look on; they never hold a run up, and never end it."""

from __future__ import annotations

import datetime
import http.client
import json
import math
import shlex
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luban.foundation.console import bytes_text, warn
from luban.foundation.environment import secret
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.training.config import AlertsConfig
from luban.training.log import ALERTS

SPEED_STEPS = 20  # whose median is a pace
DELIVERY_SECONDS = 10.0  # in which a webhook or a command must be done
AT_ONCE = 4  # deliveries under way; what comes on top is dropped, and said
LOOK_SECONDS = 5.0  # between two looks from outside the loop, where no rule asks for more


class Alerts:
    """The rules of one run. ``step`` and ``validation`` are told what happened; what can only be seen from outside the loop, a thread looks for."""

    def __init__(self, config: AlertsConfig, folder: Path, name: str):
        self.config, self.folder, self.name = config, folder, name
        self.deliver = Deliveries(config)
        self.last_step = 0
        self._beat = time.monotonic()
        self._not_finite = self._rising = 0
        self._former_loss = math.inf
        self._speeds: deque[float] = deque(maxlen=SPEED_STEPS)
        self._paces: deque[float] = deque(maxlen=1000)
        self._spoken: dict[str, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    def open(self, step: int) -> None:
        """Begin to look, at the start of the loop."""
        self.last_step, self._beat = step, time.monotonic()
        if self.config.no_step_minutes or self.config.disk_free:
            self._watch = threading.Thread(target=self._look, name="luban-alerts", daemon=True)
            self._watch.start()

    def close(self) -> None:
        """Stop looking, and give what is on its way a moment to arrive."""
        self._closed.set()
        if self._watch:
            self._watch.join(timeout=1)
        self.deliver.wait()

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """A step has ended; ``numbers`` are those of the log."""
        self.last_step, self._beat = step, time.monotonic()
        finite = all(math.isfinite(numbers[name]) for name in ("loss", "gradient_norm") if name in numbers)
        self._not_finite = 0 if finite else self._not_finite + 1
        if (limit := self.config.loss_not_finite) and self._not_finite >= limit:
            self._speak("loss_not_finite", self._not_finite, limit, t("{name}: the loss or gradient of {count} steps in a row is not finite", name=self.name, count=self._not_finite))
        if self.config.throughput:
            self._pace(numbers.get("tokens_per_second", 0.0))

    def validation(self, scores: dict[str, float]) -> None:
        """Held-out data was scored."""
        loss = scores.get("loss", math.nan)
        self._rising = self._rising + 1 if loss > self._former_loss or not math.isfinite(loss) else 0
        self._former_loss = loss if math.isfinite(loss) else self._former_loss
        if (limit := self.config.validation_rising) and self._rising >= limit:
            self._speak("validation_rising", loss, limit, t("{name}: the validation loss has risen {count} times in a row, to {loss:.4f}", name=self.name, count=self._rising, loss=loss))

    def _pace(self, speed: float) -> None:
        """The median of the last steps against the usual one: that of all paces before, the first aside (compilation, caches)."""
        self._speeds.append(speed)
        if len(self._speeds) < SPEED_STEPS:
            return
        pace = statistics.median(self._speeds)
        usual = statistics.median(list(self._paces)[1:]) if len(self._paces) > 2 else 0.0
        if pace < self.config.throughput * usual:
            self._speak("throughput", pace, self.config.throughput * usual, t("{name}: {pace:,.0f} tokens a second, the run usually makes {usual:,.0f}", name=self.name, pace=pace, usual=usual))
        if self.last_step % SPEED_STEPS == 0:
            self._paces.append(pace)

    # ---- seen from outside the loop

    def _look(self) -> None:
        limit = self.config.no_step_minutes * 60
        while not self._closed.wait(min(LOOK_SECONDS, limit / 5 or LOOK_SECONDS)):
            silent = time.monotonic() - self._beat
            if limit and silent > limit:
                self._speak("no_step", silent / 60, self.config.no_step_minutes, t("{name}: no step has ended for {minutes:.1f} minutes", name=self.name, minutes=silent / 60))
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return  # of a disk that cannot be asked nothing is known; the run itself will say so
        limit = self.config.disk_free
        if free < limit:
            self._speak("disk_free", free, limit, t("{name}: {free} are left on the disk, less than {limit}", name=self.name, free=bytes_text(free), limit=bytes_text(limit)))

    # ---- speaking

    def _speak(self, rule: str, value: float, threshold: float, text: str) -> None:
        """Say it everywhere, unless the rule has spoken not long ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._spoken.get(rule, -math.inf) < self.config.repeat_minutes * 60:
                return
            self._spoken[rule] = now
        alert = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": self.last_step,
            "rule": rule,
            "value": value if math.isfinite(value) else None,
            "threshold": threshold,
            "text": text,
            "run": self.name,
            "folder": str(self.folder.resolve()),
            "host": socket.gethostname(),
        }
        self.deliver(alert)  # first: the disk or the terminal may be what is stuck
        warn("alert at step {step}: {text}", step=self.last_step, text=text)
        try:
            with (self.folder / ALERTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(alert, ensure_ascii=False) + "\n")
        except OSError as error:
            warn("the alert is not in {file}: {error}", file=ALERTS, error=error.strerror or error)


class Deliveries:
    """Alerts on their way, each in a thread of its own that the end of the process does not wait for."""

    def __init__(self, config: AlertsConfig):
        self.ways: list[Callable[[bytes], None]] = []
        if address := _address(config):
            self.ways.append(lambda body: post(address, body))
        if config.command:
            words = _words(config.command)
            self.ways.append(lambda body: start(words, body))
        self._under_way: list[threading.Thread] = []

    def __call__(self, alert: dict[str, Any]) -> None:
        body = json.dumps(alert, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        for way in self.ways:
            self._under_way = [thread for thread in self._under_way if thread.is_alive()]
            if len(self._under_way) >= AT_ONCE:
                warn("an alert was not delivered: {count} others are still under way", count=AT_ONCE)
                continue
            thread = threading.Thread(target=_try, args=(way, body), name="luban-alert", daemon=True)
            thread.start()
            self._under_way.append(thread)

    def wait(self) -> None:
        deadline = time.monotonic() + DELIVERY_SECONDS
        for thread in self._under_way:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


def _try(way: Callable[[bytes], None], body: bytes) -> None:
    """Deliver; what goes wrong is said and ends nothing. The address is not repeated: it may be a secret."""
    try:
        way(body)
    except Exception as error:  # whatever a network or a command can do wrong
        warn("an alert was not delivered: {error}", error=f"{type(error).__name__}: {error}"[:200])


def post(address: str, body: bytes) -> None:
    """POST JSON. Raises OSError or HTTPException; a redirection is an error too, since a POST does not survive it."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=DELIVERY_SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json", "User-Agent": "luban"})
        if (status := connection.getresponse().status) >= 300:
            raise OSError(f"status {status}")
    finally:
        connection.close()


def start(words: list[str], body: bytes) -> None:
    """Run a command with the JSON on its standard input. Raises OSError or SubprocessError."""
    subprocess.run(words, input=body, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=DELIVERY_SECONDS, check=True)


def _address(config: AlertsConfig) -> str:
    if not config.webhook_variable:
        return config.webhook
    address = secret(config.webhook_variable) or ""
    if not address.startswith(("http://", "https://")):
        raise ConfigError("track.alerts.webhook_variable: the environment variable {name} holds no http or https address", "", "set it, or leave webhook_variable out", name=config.webhook_variable)
    return address


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError("track.alerts.command: {command!r} cannot be split into words ({error})", "", "close its quotes", command=command, error=error) from None
