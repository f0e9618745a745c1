"""Runs that are asked to leave, that hang, or whose arithmetic is wrong: real signals, real hangs, really flipped bits, in processes of their own."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from guard_lab import Child, bits, events, lines, losses, train

from luban.foundation.durations import TimeSpan
from luban.foundation.errors import LubanError

NAPS = "import time, pathlib\ndef naps(run):\n    time.sleep(0.05)\n    pathlib.Path(__file__).with_name('reached').write_text(str(run.step))\n"


def naps(folder: Path) -> str:
    (folder / "naps.py").write_text(NAPS)
    return f"{folder / 'naps.py'}:naps"


def test_signals_and_the_wall_clock_save_and_leave_with_a_status_to_requeue_on(tmp_path, tokens):
    whole = train(tmp_path, tokens, "whole/model", callbacks=[naps(tmp_path)])
    out = tmp_path / "parts" / "model"
    for number in (signal.SIGUSR1, signal.SIGTERM, None):
        reached = tmp_path / "reached"
        reached.unlink(missing_ok=True)
        child = Child(tokens, out, callbacks=[naps(tmp_path)], **({} if number else {"wall_clock": "1s"}))
        child.until(reached.exists)
        if number:
            child.send(number)
        message = child.end()
        assert child.returncode == 75, message
        assert (number.name if number else "wall_clock") in message and "Traceback" not in message
    assert events(out.with_name("model.partial")) == ["stopped"] * 3
    last = Child(tokens, out, callbacks=[naps(tmp_path)])
    assert "Traceback" not in last.end() and last.returncode == 0
    assert bits(out) == bits(whole) and losses(out) == losses(whole.path)


BLOCKS = {
    "sleeps": "time.sleep(600)",
    "holds the interpreter": "ctypes.PyDLL(None).sleep(600)",
}


@pytest.mark.parametrize("how", BLOCKS)
def test_a_hang_is_told_apart_written_down_and_ended(tmp_path, tokens, how):
    """A callback that never comes back; the second one never lets go of the interpreter either, so that nothing of ours can run."""
    (tmp_path / "blocks.py").write_text(f"import ctypes, pathlib, time\ndef blocks(run):\n    if run.step == 3 and not pathlib.Path(__file__).with_name('calm').exists():\n        {BLOCKS[how]}\n")
    child = Child(tokens, tmp_path / "out", callbacks=[f"{tmp_path / 'blocks.py'}:blocks"], guards={"watchdog": {"step": "0.5s"}})
    message = child.end()
    stacks = (tmp_path / "out.partial" / "training" / "stacks.txt").read_text()
    assert "blocks.py" in stacks and "in blocks" in stacks
    assert child.returncode == (75 if how == "sleeps" else 1), message
    if how == "sleeps":
        assert "hangs" in message and events(tmp_path / "out.partial") == ["hang"]
    (tmp_path / "calm").touch()
    again = Child(tokens, tmp_path / "out", callbacks=[f"{tmp_path / 'blocks.py'}:blocks"])
    assert again.end() and again.returncode == 0, "the launcher starts it again, and it goes on"


def test_a_slow_step_and_a_process_that_was_stopped_are_no_hangs(tmp_path, tokens):
    (tmp_path / "blocks.py").write_text("import time\ndef blocks(run):\n    end = time.monotonic() + 0.8\n    while run.step == 3 and time.monotonic() < end:\n        sum(range(1000))\n")
    child = Child(tokens, tmp_path / "out", callbacks=[naps(tmp_path), f"{tmp_path / 'blocks.py'}:blocks"], guards={"watchdog": {"step": "0.5s"}})
    child.until((tmp_path / "reached").exists)
    child.send(signal.SIGSTOP)
    time.sleep(1.5)
    child.send(signal.SIGCONT)
    message = child.end()
    assert child.returncode == 0, message
    assert events(tmp_path / "out") == ["slow"]


FLIPS = """
import torch
def flips(run):
    if run.step == 1:
        weight = dict(run.model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
        calls = []
        def flip(gradient):
            calls.append(run.step)
            if run.step == 5 and calls.count(5) == {at}:
                gradient = gradient.clone()
                gradient.view(torch.int32).view(-1)[7] ^= 1  # the lowest bit of one number
            return gradient
        weight.register_hook(flip)
"""


def test_a_flipped_bit_of_a_gradient_is_found(tmp_path, tokens):
    (tmp_path / "flips.py").write_text(FLIPS.format(at=2))
    callbacks = [f"{tmp_path / 'flips.py'}:flips"]
    with pytest.raises(LubanError, match=r"step 6 was computed twice, and 1 results differ, model\.layers\.0\.self_attn\.q_proj\.weight"):
        train(tmp_path, tokens, callbacks=callbacks, guards={"recheck_every": 3})
    noted = train(tmp_path, tokens, "noted", callbacks=callbacks, guards={"recheck_every": 3, "recheck_action": "note"})
    assert [(entry["event"], entry["step"]) for entry in lines(noted.path, "guard.jsonl")] == [("recheck", 6)]
    plain = train(tmp_path, tokens, "plain", regularization={"dropout": "auto"})
    checked = train(tmp_path, tokens, "checked", guards={"recheck_every": 2}, micro_batch_rows=2)
    halves = train(tmp_path, tokens, "halves", micro_batch_rows=2)
    assert bits(checked) == bits(halves) and events(checked.path) == [] and losses(plain.path)


@pytest.mark.parametrize(("text", "seconds"), [("3h", 10800), ("90 minutes", 5400), ("1d 12h", 129600), ("0.5s", 0.5)])
def test_a_span_of_time_is_read_as_people_write_it(text, seconds):
    assert TimeSpan.parse(text).seconds == seconds and str(TimeSpan.parse(text)) == text


@pytest.mark.parametrize("text", ["3", 3, "", "h", "-1h", "0s", "3 hx", "1h foo"])
def test_a_span_without_a_unit_is_refused(text):
    with pytest.raises(ValueError, match="span of time"):
        TimeSpan.parse(text)
