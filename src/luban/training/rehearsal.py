"""What is measured on the model itself before step one, and then holds for the run: whether its blocks are compiled, and how cross-entropy is taken.

What was chosen is printed and stands in choices.json before the first step; a run that goes on takes it from there, and a recipe may say it. Under ``determinism: strict`` nothing is
measured, since a measurement may turn out otherwise the next time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from luban.foundation.artifacts import write_json
from luban.foundation.console import say
from luban.objectives.losses import CROSS_ENTROPIES, hidden_sum, may_be_plain
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.ranks import here
from luban.tokens.batch import Batch
from luban.training.compiling import choose_compile, compile_blocks
from luban.training.randomness import random_state, set_random_state
from luban.training.run import Run

WORTH_A_LOOK = 64  # passes of a run from which on the few that a comparison takes are about a hundredth of it
CLEARLY = 0.95  # of the other's time: the plain form holds more, so a tie is not its


class Rehearsal:
    """A micro-batch of the run's first step. What is tried on it leaves nothing behind: no gradient, no random number, no mode."""

    def __init__(self, run: Run):
        self.run = run
        batch = run.objective.prepare(run.loaders.train.step(0), run.model)
        parts = run.engine.micro_batches(batch)
        self.part: Batch = parts[0]
        self.passes = len(parts)  # of a step

    def seconds_of_a_pass(self) -> float:
        """Forward and backward pass of the micro-batch."""
        counts: dict[str, float] = defaultdict(lambda: 1.0)
        engine = self.run.engine
        with self._undone():
            return _fastest(lambda: engine.passes.backward(engine, self.part, counts), engine.device)

    def seconds_of_loss(self, form: str) -> float:
        """Cross-entropy of as many tokens as the micro-batch scores, and its gradients."""
        model, scored = self.run.model, self.part.scored.numel()
        hidden = torch.full((scored, model.shape.hidden_size), 0.1, dtype=model.states_dtype, device=model.device, requires_grad=True)  # [scored, dim]
        targets = torch.zeros(scored, dtype=torch.long, device=model.device)
        learning = [hidden, *(parameter for parameter in model.parameters() if parameter.requires_grad)]

        def once() -> None:
            with self.run.engine.autocast():
                total = hidden_sum(model, hidden, targets, hidden.new_ones(scored), form=form)
            torch.autograd.grad(total, learning, allow_unused=True)

        with self._undone():
            return _fastest(once, model.device)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        model, random = self.run.model, random_state()
        training = model.training
        model.train()
        try:
            yield
        finally:
            model.train(training)
            self.run.engine.optimizer.zero_grad()
            set_random_state(random)


def _fastest(work: Callable[[], object], device: torch.device, rounds: int = 2) -> float:
    """Seconds of the best of so many rounds after one to warm up. On a processor those of the threads' own time: what other programs take of it slows all that is compared alike."""
    best = float("inf")
    for number in range(rounds + 1):
        begun = time.process_time() if device.type == "cpu" else time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = (time.process_time() - begun) / torch.get_num_threads() if device.type == "cpu" else time.perf_counter() - begun
        best = min(best, took) if number else best
    return best


def settle(run: Run) -> None:
    """Make the choices that are still to be made, do what they say, and write them down. All ranks call it."""
    ranks, choices = here(), run.choices
    open_ones = [name for name in ("compile", "cross_entropy") if choices[name] == "auto"]
    looked: list[Rehearsal] = []

    def rehearsal() -> Rehearsal:
        if not looked:
            looked.append(Rehearsal(run))
        return looked[0]

    if "compile" in open_ones:
        choices["compile"] = ranks.lead(lambda: choose_compile(run, lambda: rehearsal().seconds_of_a_pass() * rehearsal().passes))
    if choices["compile"]:
        compile_blocks(run)
    if "cross_entropy" in open_ones:  # of a compiled model the chunks' is compiled too
        choices["cross_entropy"] = ranks.lead(lambda: _choose_cross_entropy(run, rehearsal))
    run.model.cross_entropy = choices["cross_entropy"]
    if open_ones and ranks.leads:
        write_json(run.folder / "choices.json", choices)


def _choose_cross_entropy(run: Run, rehearsal: Callable[[], Rehearsal]) -> str:
    """plain or chunked: the faster, where the plain form's logits are few enough to be held and the run is long enough to tell."""
    model = run.model
    read = run.objective.unit == "token" and (model.head is None or not model.head.replaces_output)
    if not read or run.config.determinism == "strict" or type(run.engine.layout) not in (Layout, Replicated):
        return "chunked"
    tokens = min(run.engine.micro_batch_rows * run.config.sequence_length, run.step_tokens)
    if run.schedule.total * run.step_tokens < WORTH_A_LOOK * tokens or not may_be_plain(model, tokens):
        return "chunked"
    seconds = {form: rehearsal().seconds_of_loss(form) for form in CROSS_ENTROPIES}
    chosen = "plain" if seconds["plain"] < CLEARLY * seconds["chunked"] else "chunked"
    say("cross_entropy: {form} (measured: plain {plain:.1f} ms, chunked {chunked:.1f} ms a micro-batch)", form=chosen, plain=1e3 * seconds["plain"], chunked=1e3 * seconds["chunked"])
    return chosen
