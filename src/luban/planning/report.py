"""A plan in words and numbers: what fits, what it takes, what bounds it, why the others lose, what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luban.foundation.console import bytes_text, count_text, heading, say, seconds_text, table
from luban.foundation.messages import t
from luban.models.counts import parameters
from luban.planning.devices import Cluster
from luban.planning.job import Job
from luban.planning.margins import Margin
from luban.planning.search import Candidate, advice, check_written, devices_needed, disk_bytes, other_needs, search


@dataclass
class Plan:
    """The candidates for a job on a cluster, the best first, and the others with why they lose."""

    name: str
    job: Job
    cluster: Cluster
    margin: Margin
    best: list[Candidate]
    others: list[tuple[Candidate, str]]
    changes: list[tuple[str, Candidate]]
    needed: int | None
    assumed: list[str]
    price: float

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data; bytes, seconds and shares."""
        return {
            "stage": self.name, "cluster": self.cluster.text, "architecture": self.job.shape.architecture, "parameters": parameters(self.job.shape)["total"], "precision": self.job.precision,
            "margin": {"memory": self.margin.memory, "time": self.margin.time, "ledger_runs": self.margin.runs, "ledger_ratio": self.margin.ratio}, "assumed": self.assumed,
            "best": [self.figures(one) for one in self.best], "others": [{"layout": one.layout.recipe(), "why": why} for one, why in self.others],
            "changes": [{"override": change, **self.figures(one)} for change, one in self.changes], "devices_needed": self.needed,
        }  # fmt: skip

    def figures(self, one: Candidate) -> dict[str, Any]:
        """One candidate's numbers."""
        job, layout, known, memory = one.job, one.layout, one.speed, one.memory
        seconds = self.job.tokens / known.tokens_per_second
        hours = seconds / 3600 * self.cluster.count
        device = self.cluster.device
        watts = device.watts * (0.35 + 0.6 * min(1.0, known.products / known.step)) * self.cluster.count
        return {
            "layout": layout.recipe() | ({"offload": {"weights": "cpu", "optimizer": "cpu"}} if job.offload else {}), "recompute": job.recompute, "micro_batch_rows": job.rows, "accumulation": job.micro_batches(layout),
            "memory": {**{name: round(size * self.margin.ratio) for name, size in memory.parts.items()}, "reserved": round(memory.reserved), "total": round(memory.total * self.margin.ratio), "at": memory.moment},
            "other_memory": {name: round(size) for name, size in other_needs(job, layout).items()}, "disk": {name: round(size) for name, size in disk_bytes(job).items()},
            "step_seconds": known.step, "bound": known.bound, "tokens_per_second": known.tokens_per_second, "share_of_peak": known.utilization(device.rate(job.precision)),
            "parts_of_step": {"compute": known.products, "memory": known.memory, "network": known.network, "pipeline": known.bubble},
            "seconds": seconds, "device_hours": hours, "cost": hours * self.price, "kilowatt_hours": watts * seconds / 3.6e6,
            "input_bytes_per_second": known.tokens_per_second * (2 if job.shape.vocabulary_size <= 65536 else 4),
        }  # fmt: skip


def make_plan(name: str, job: Job, cluster: Cluster, margin: Margin, *, price: float = 0.0, fixed: bool = False, assumed: list[str] | None = None) -> Plan:
    """Look for the best layouts; where none fits, for what to change."""
    candidates = search(job, cluster, margin, fixed)
    if job.written and not candidates:
        check_written(job, cluster)
    best = [one for one in candidates if one.fits][:3]
    others = [(one, _why(one, best, cluster, margin)) for one in candidates if one not in best]
    changes = [] if best else advice(job, cluster, margin)
    return Plan(name, job, cluster, margin, best, others, changes, None if best else devices_needed(job, cluster, margin), assumed or [], price)


def _why(one: Candidate, best: list[Candidate], cluster: Cluster, margin: Margin) -> str:
    """Why a candidate is not among the best."""
    if one.why:
        return t(one.why)
    if one.speed is None and one.memory is not None:
        return t("does not fit: {need} ±{share:.0%} of {room}", need=bytes_text(one.memory.total * margin.ratio), share=margin.memory, room=bytes_text(cluster.device.memory))
    if best and one.speed is not None:
        slower = one.speed.step / best[0].speed.step
        if slower < 0.995:
            return t("{share:.0%} faster by the arithmetic, too little for more that is shared", share=1 - slower)
        return t("{times:.2f} times as long, bound by the {bound}", times=slower, bound=t(one.speed.bound))
    return t("does not fit with the settings that would be faster")


# ---- for people -----------------------------------------------------------------------------------------------------


def show(plan: Plan, most_others: int = 6) -> None:
    """Print a plan."""
    job, device = plan.job, plan.cluster.device
    heading(
        "{stage}: {parameters} parameters ({architecture}), rows of {length} tokens, {step} tokens a step, {tokens} tokens in all, on {cluster}",
        stage=plan.name, parameters=count_text(parameters(job.shape)["total"]), architecture=job.shape.architecture, length=job.sequence_length, step=count_text(job.step_rows * job.sequence_length),
        tokens=count_text(job.tokens), cluster=plan.cluster.text,
    )  # fmt: skip
    for one in plan.assumed:
        say("assumed: {what}", what=one)
    say("each device: {memory}, {rate} operations a second in {precision}; arithmetic, to be read as ±{share:.0%} of memory and ±{time:.0%} of time", memory=bytes_text(device.memory), rate=count_text(device.rate(job.precision)), precision=job.precision, share=plan.margin.memory, time=plan.margin.time)
    if plan.margin.runs:
        say("{runs} runs of yours on such devices held {ratio:.2f} times what was predicted; that is in these numbers", runs=plan.margin.runs, ratio=plan.margin.ratio)
    if plan.best:
        _show_best(plan)
        _show_others(plan, most_others)
    else:
        _show_changes(plan)
        _show_others(plan, most_others)


def _show_best(plan: Plan) -> None:
    figures = [plan.figures(one) for one in plan.best]
    rows = [
        [t("layout"), *(one.layout.text() for one in plan.best)],
        [t("recompute, micro-batch, accumulation"), *(f"{_recompute(each['recompute'])}, {each['micro_batch_rows']}, {each['accumulation']}" for each in figures)],
        *([t(name), *(bytes_text(each["memory"][name]) for each in figures)] for name in ("weights", "gradients", "optimizer", "activations", "logits", "temporary", "communication", "reserved") if any(each["memory"][name] for each in figures)),
        [t("memory of a device at the most"), *(f"{bytes_text(each['memory']['total'])} ±{plan.margin.memory:.0%}" for each in figures)],
        [t("which is in the"), *(t(each["memory"]["at"]) for each in figures)],
        *([t("memory for {what}", what=t(name)), *(bytes_text(each["other_memory"].get(name, 0)) for each in figures)] for name in figures[0]["other_memory"]),
        [t("a step"), *(f"{seconds_text(each['step_seconds'])} ±{plan.margin.time:.0%}" for each in figures)],
        [t("tokens a second"), *(count_text(float(f"{each['tokens_per_second']:.3g}")) for each in figures)],
        [t("share of the peak"), *(f"{each['share_of_peak']:.0%}" for each in figures)],
        [t("bound by"), *(_bound(each) for each in figures)],
        [t("time in all"), *(_range(each["seconds"], plan.margin.time) for each in figures)],
        [t("device hours"), *(f"{each['device_hours']:,.0f}" for each in figures)],
        *([[t("cost"), *(f"{each['cost']:,.0f}" for each in figures)]] if plan.price else []),
        [t("energy"), *(f"{each['kilowatt_hours']:,.1f} kWh" for each in figures)],
        [t("disk: checkpoints, model, tokens"), *(", ".join(bytes_text(size) for size in each["disk"].values()) for each in figures)],
        [t("input read"), *(f"{bytes_text(each['input_bytes_per_second'])}/s" for each in figures)],
    ]  # fmt: skip
    table("", ["", *(t("best") if number == 0 else f"{number + 1}." for number in range(len(plan.best)))], rows)
    first = figures[0]
    if not plan.cluster.device.trains:
        say("Luban does not train on such devices: this is arithmetic alone")
        return
    say("write into the stage: layout: {layout}, recompute: {recompute}, micro_batch_rows: {rows}", layout="{" + ", ".join(f"{name}: {value}".replace("'", "") for name, value in first["layout"].items()) + "}", recompute=_recompute(first["recompute"]), rows=first["micro_batch_rows"])


def _recompute(mode: str | int) -> str:
    return mode if isinstance(mode, str) else bytes_text(mode)


def _bound(each: dict[str, Any]) -> str:
    """``compute (82 %, memory 15 %, network 3 %)``."""
    parts = sorted(((name, seconds / each["step_seconds"]) for name, seconds in each["parts_of_step"].items()), key=lambda pair: -pair[1])
    rest = ", ".join(f"{t(name)} {share:.0%}" for name, share in parts[1:] if share >= 0.005)
    return f"{t(parts[0][0])} {parts[0][1]:.0%}" + (f" ({rest})" if rest else "")


def _range(seconds: float, share: float) -> str:
    return f"{seconds_text(seconds * (1 - share))} – {seconds_text(seconds * (1 + share))}"


def _show_others(plan: Plan, most: int) -> None:
    if not plan.others:
        return
    table(t("why the others lose"), [t("layout"), t("why")], [[one.layout.text(), why] for one, why in plan.others[:most]])
    if len(plan.others) > most:
        say("and {count} more; --json has all of them", count=len(plan.others) - most)


def _show_changes(plan: Plan) -> None:
    closest = min((one for one, _ in plan.others if one.memory), key=lambda one: one.memory.total, default=None)
    if closest is not None:
        ratio = plan.margin.ratio
        say("nothing fits. The least, {layout} with recompute: {recompute} and {rows} rows, takes {need} ±{share:.0%} of {room}", layout=closest.layout.text(), recompute=_recompute(closest.job.recompute), rows=closest.job.rows, need=bytes_text(closest.memory.total * ratio), share=plan.margin.memory, room=bytes_text(plan.cluster.device.memory))
        table("", [t("of that"), ""], [[t(name), bytes_text(size * ratio)] for name, size in closest.memory.parts.items() if size])
    if plan.changes:
        rows = []
        for change, one in plan.changes:
            each = plan.figures(one)
            rows.append([change, one.layout.text(), f"{bytes_text(each['memory']['total'])} ±{plan.margin.memory:.0%}", count_text(float(f"{each['tokens_per_second']:.3g}")), _range(each["seconds"], plan.margin.time)])
        table(t("what would fit"), [t("change"), t("layout"), t("memory of a device at the most"), t("tokens a second"), t("time in all")], rows)
    if not plan.others:
        say("a step has {rows} rows, which {count} devices cannot share: raise batch_tokens, or name fewer", rows=plan.job.step_rows, count=plan.cluster.count)
    if plan.needed:
        say("as it is, it fits on {count} of these devices", count=plan.needed)
