"""The recipe that a budget leads to, as text to edit: every number with a comment that says where it comes from."""

from __future__ import annotations

from os.path import relpath
from pathlib import Path

import yaml

from luban.foundation.console import count_text, seconds_text
from luban.foundation.durations import Duration
from luban.foundation.messages import t
from luban.pipeline.budget import OPTIMIZER, Chosen, how_counted, times_text, warnings
from luban.planning import dial
from luban.planning.devices import MEASURED, Cluster


def recipe_text(chosen: Chosen, sources: list[Path], file: Path) -> str:
    """The YAML; paths in it start at the file's folder where they were given relative."""
    best, counted = chosen.best, chosen.counted
    names = [str(path) if path.is_absolute() else Path(relpath(path.resolve(), file.parent.resolve())).as_posix() for path in sources]
    lines = [
        *_head(chosen),
        "luban: 1",
        *_cluster(chosen.cluster),
        f"name: {_plain(file.stem if file.stem != 'recipe' else file.resolve().parent.name)}",
        "seed: 1",
        "",
        "stages:",
        "  corpus:",
        "    kind: curate",
        _line("    sources: [" + ", ".join(map(_plain, names)) + "]", how_counted(counted)),
        _line(f"    split: {{validation: {chosen.held_out:g}, test: {chosen.held_out:g}}}", t("about 2 MB each, at most 2 %")),
        "",
        "  tokenizer:",
        "    kind: train_tokenizer",
        "    corpus: corpus",
        _line(f"    vocabulary_size: {counted.vocabulary}", t("2.9 times the root of the bytes of text, at most 65,536; {each:.2f} bytes a token on a sample", each=counted.bytes_a_token)),
        "",
        "  tokens:",
        "    kind: encode",
        "    corpus: corpus",
        "    tokenizer: tokenizer",
        "",
        *_train(chosen),
        "",
        "  report:",
        "    kind: evaluate",
        "    models: base",
        "    data: corpus",
        _line("    baselines: [3, 5]", t("character n-grams: what the model must be better than")),
        "",
        "  serve:",
        "    kind: serve",
        "    model: base",
        "",
    ]
    assert best.depth == yaml.safe_load("\n".join(lines))["stages"]["base"]["depth"]
    return "\n".join(lines)


def _head(chosen: Chosen) -> list[str]:
    best, budget = chosen.best, chosen.budget
    if budget.cost is not None:
        given = t("{cost:g} at {price:g} a device and hour: {time} on {cluster}", cost=budget.cost, price=budget.price, time=seconds_text(budget.seconds), cluster=chosen.cluster.text)
    elif budget.seconds is not None:
        given = t("{time} on {cluster}", time=seconds_text(budget.seconds), cluster=chosen.cluster.text)
    elif budget.tokens is not None:
        given = t("{tokens} tokens to read", tokens=count_text(budget.tokens))
    else:
        given = t("{parameters} parameters", parameters=count_text(budget.parameters))
    lines = [
        t("written by luban plan for a budget of {given}; yours to edit", given=given),
        t("law: L(N, D) = E + A / N^alpha + B / D^beta with {law}", law=chosen.law.text()),
        t("by it: {parameters} parameters and {tokens} tokens, loss {loss:.3f} on the law's own text (yours differs: luban scaling FILE foretells it)", parameters=count_text(best.parameters), tokens=count_text(best.tokens), loss=best.loss),
        t("time by the planner: {time}, give or take {margin:.0%}, at {speed} tokens a second", time=seconds_text(best.seconds), margin=chosen.margin.time, speed=count_text(float(f"{best.candidate.speed.tokens_per_second:.3g}"))),
        *warnings(chosen),
    ]
    return [f"# {line}" for line in lines]


def _cluster(there: Cluster) -> list[str]:
    """What the layout is made for; a processor alone needs no word."""
    if there.count == 1 and there.device.kind == "cpu":
        return []
    return [f"cluster: {there.text if there.device.source != MEASURED else 'this'}"]


def _train(chosen: Chosen) -> list[str]:
    best, config, one = chosen.best, chosen.best.config, chosen.best.candidate
    rates = dial.learning_rates(OPTIMIZER, best.shape.hidden_size, "causal", False, depth=best.depth)
    shape = best.shape
    lines = [
        "  base:",
        "    kind: train",
        "    objective: causal",
        "    data: tokens",
        _line(f"    depth: {best.depth}", t("{parameters} parameters: width {width}, {heads} heads follow; the best of depths {low} to {high} by the law", parameters=count_text(best.parameters), width=shape.hidden_size, heads=shape.heads, low=chosen.every[0].depth, high=chosen.every[-1].depth) if chosen.budget.seconds is not None else t("{parameters} parameters: width {width}, {heads} heads follow; the depth that comes nearest", parameters=count_text(best.parameters), width=shape.hidden_size, heads=shape.heads)),
        _line(f"    length: {Duration(float(f'{best.tokens:.3g}'), 'tokens')}", t("{epochs} times the {unique} tokens of the train split; {each:.3g} a parameter", epochs=times_text(best.epochs), unique=count_text(float(f"{chosen.unique:.3g}")), each=best.tokens / best.parameters)),
        _line(f"    sequence_length: {config.sequence_length}", t("what the depth is made for, at most 2,048")),
        _line(f"    batch_tokens: {config.batch_tokens}", t("grows with about the root of the tokens read: {steps} steps", steps=f"{best.tokens / config.batch_tokens:,.0f}")),
        _line("    optimizer: {name: " + OPTIMIZER + "".join(f", {name}: {value:g}" for name, value in rates.items()) + "}", t("they fall with width and depth (benchmarks/transfer.py)")),
        _line("    schedule: {shape: linear, final: 0.01}", t("down to a hundredth at the end")),
    ]
    if chosen.cluster.device.kind != "cpu" or chosen.cluster.count > 1:
        layout = "{" + ", ".join(f"{name}: {value}" for name, value in one.layout.recipe().items()) + "}"
        lines += [_line(f"    layout: {layout}", t("the fastest that fits on {cluster}: bound by the {bound}", cluster=chosen.cluster.text, bound=t(one.speed.bound))), f"    recompute: {one.job.recompute}", f"    micro_batch_rows: {one.job.rows}"]
    return lines


def _line(text: str, why: str) -> str:
    return f"{text}  # {why}"


def _plain(text: str) -> str:
    """Text as YAML writes it on one line."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=1 << 20).strip()[1:-1]
