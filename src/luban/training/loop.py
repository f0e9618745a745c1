"""The one loop."""

from __future__ import annotations

from luban.training.guards import Guard
from luban.training.run import Run


def train(run: Run, guard: Guard) -> None:
    """Turn until the schedule ends or something asks to stop. Everything that is not a step is a hook."""
    run.model.train()
    while not run.finished and not run.stop_reason:
        run.clock.begin_step()
        # ------------------------------------------------------------------ one step
        batch = run.loaders.train.step(run.place)
        run.clock.enter("compilation" if run.compiles else "steps")
        batch = run.engine.prepare(batch)
        factor = run.schedule.factor(run.step)
        means = run.engine.forward_backward(batch, factor)
        norm = run.engine.clip(run.config.gradient_clip)
        verdict = guard.judge(run, batch, means, norm)
        run.engine.step(factor, run.step + 1, verdict == 0)
        # ---------------------------------------------------------------------------
        run.advance(batch, means, norm, factor)
        run.after_step()
