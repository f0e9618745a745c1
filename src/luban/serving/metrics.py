"""What the server counts, in Prometheus' text format, under vLLM's names with the prefix `luban_`.

Dashboards and autoscalers written for vLLM work after that one substitution. Time spans are monotonic and
measured in this process; their buckets are vLLM's, from a millisecond up.
"""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

prometheus_client.disable_created_metrics()


class Metrics:
    """The counters of one server. All may be used from any thread."""

    def __init__(self, model_name: str, slots: int):
        self.registry = CollectorRegistry()
        self.model_name = model_name
        self.running = self._gauge("num_requests_running", "Sequences being generated.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences waiting for a slot.")
        self.cache_usage = self._gauge("kv_cache_usage_perc", "Share of the slots of the key-value cache in use, 0 to 1.")
        self.slots = self._gauge("num_slots", "Sequences that can be generated at once.")
        self.slots.set(slots)
        self.draining = self._gauge("draining", "1 while the server finishes its last requests.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts read.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN)
        self.between_tokens = self._histogram("inter_token_latency_seconds", "From one token to the next.", _BETWEEN_TOKENS)
        self.request = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST)
        self.queue = self._histogram("request_queue_time_seconds", "From arrival to a slot.", _REQUEST)
        self.prefill = self._histogram("request_prefill_time_seconds", "From a slot to the first token.", _REQUEST)
        self.decode = self._histogram("request_decode_time_seconds", "From the first token to the last.", _REQUEST)
        self.batch = self._histogram("iteration_sequences", "Sequences in one forward pass.", _SEQUENCES)
        self.items_waiting = self._gauge("num_items_waiting", "Items that wait to be predicted.")
        self.batch_items = self._histogram("prediction_batch_items", "Items predicted in one batch.", _SEQUENCES)
        self.batch_seconds = self._histogram("prediction_batch_seconds", "Time of one batch of predictions.", _REQUEST)
        self.item = self._histogram("prediction_latency_seconds", "From an item's arrival to its prediction.", _REQUEST)
        self._predicted = Counter("luban_predicted_items", "Items predicted, by outcome.", ["model_name", "outcome"], registry=self.registry)
        self._success = Counter(
            "luban_request_success", "Sequences finished, by reason.", ["model_name", "finished_reason"], registry=self.registry
        )
        self._http = Counter("luban_http_requests", "HTTP requests answered.", ["handler", "method", "status"], registry=self.registry)
        for reason in ("stop", "length", "abort"):
            self._success.labels(model_name, reason)
        for outcome in ("done", "error", "abort"):
            self._predicted.labels(model_name, outcome)

    def finished(self, reason: str) -> None:
        """Count a sequence that ended: "stop", "length", or "abort" for one cancelled or given up."""
        self._success.labels(self.model_name, reason).inc()

    def predicted(self, outcome: str, count: int) -> None:
        """Count items that were predicted ("done"), could not be ("error"), or whose client had left ("abort")."""
        self._predicted.labels(self.model_name, outcome).inc(count)

    def answered(self, handler: str, method: str, status: int) -> None:
        self._http.labels(handler, method, str(status)).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(f"luban_{name}", doc, ["model_name"], registry=self.registry).labels(self.model_name)

    def _counter(self, name: str, doc: str) -> Counter:
        return Counter(f"luban_{name}", doc, ["model_name"], registry=self.registry).labels(self.model_name)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"luban_{name}", doc, ["model_name"], registry=self.registry, buckets=buckets).labels(self.model_name)
