"""The numbers of a running training as Prometheus metrics: an endpoint to pull from, and a file for node_exporter."""

from __future__ import annotations

import re
import time
from pathlib import Path

from luban.foundation.console import say
from luban.foundation.errors import ConfigError, LubanError
from luban.training.config import TrackConfig

FILE_SECONDS = 5.0  # between two writings of the file


class PrometheusWriter:
    """Gauges ``luban_train_loss{run="base"}``, ``luban_validation_…``; ``luban_train_steps_total`` and the time of the last step tell a run that stands still."""

    def __init__(self, config: TrackConfig, name: str):
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.name, self.file = name, Path(config.prometheus_file) if config.prometheus_file else None
        if self.file and (self.file.suffix != ".prom" or not self.file.parent.is_dir()):
            raise ConfigError(
                "track.prometheus_file: {file} is no file that node_exporter would read",
                "its folder must exist, and its name end in .prom",
                "name one in the folder that node_exporter is started with",
                file=self.file,
            )
        self.registry, self._gauge = CollectorRegistry(), Gauge
        self.gauges: dict[str, Gauge] = {}
        self.steps = Counter("luban_train_steps", "Steps done by this process.", ["run"], registry=self.registry).labels(name)
        self.last = Gauge("luban_train_last_step_timestamp_seconds", "When the last step ended.", ["run"], registry=self.registry).labels(name)
        self.written = float("-inf")
        self.server = _listen(config.prometheus, self.registry) if config.prometheus else None

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in {**values, "step": step}.items():
            self._of(f"luban_{group}_{name}").labels(self.name).set(value)
        if group == "train":
            self.steps.inc()
            self.last.set(time.time())
        if self.file and time.monotonic() - self.written > FILE_SECONDS:
            self._write()

    def close(self) -> None:
        if self.file:
            self._write()
        if self.server:
            self.server.shutdown()
            self.server.server_close()

    def _of(self, name: str):
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        if name not in self.gauges:
            self.gauges[name] = self._gauge(name, "As in training/log.jsonl.", ["run"], registry=self.registry)
        return self.gauges[name]

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        self.written = time.monotonic()
        write_to_textfile(str(self.file), self.registry)  # aside, then renamed


def _listen(address: str, registry):
    """A server in a thread of its own. Raises LubanError when the address cannot be had."""
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        server, _ = start_http_server(int(port), host, registry)
    except (OSError, OverflowError) as error:
        raise LubanError(
            "track.prometheus: cannot listen on {address} ({error})",
            "another program may have the port already",
            "choose another port; port 0 takes a free one",
            address=address,
            error=getattr(error, "strerror", None) or error,
        ) from None
    say("metrics: http://{host}:{port}/metrics", host=f"[{host}]" if ":" in host else host, port=server.server_address[1])
    return server
