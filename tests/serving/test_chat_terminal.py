"""The conversation in the terminal, without one and in a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from serving_lab import make_model

from luban.cli import chat_terminal
from luban.cli.chat_terminal import Conversation, chat
from luban.inference.config import SamplingConfig
from luban.inference.generate import LoadedModel


def talk(monkeypatch, folder, *lines: str, **settings) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    chat(folder, **settings)


def test_one_question(model_folder, loaded: LoadedModel, capsys):
    chat(model_folder, prompt="你好", temperature=0, maximum_tokens=12)
    expected = loaded.chat("你好", temperature=0, maximum_tokens=12)
    assert capsys.readouterr().out == chat_terminal._printable(expected) + "\n"


def test_turns_are_remembered_and_forgotten(model_folder, loaded: LoadedModel, monkeypatch, capsys):
    settings = {"temperature": 0, "maximum_tokens": 12}
    first = [{"role": "user", "content": "你好"}]
    answer = loaded.chat(first, **settings)
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    alone = loaded.chat("Why?", **settings)
    guided = loaded.chat([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], **settings)
    talk(monkeypatch, model_folder, "你好", "Why?", "/clear", "Why?", "/clear", "/system Be kind.", "Why?", "/help", "/nonsense", "", "/quit", "unread", **settings)
    printed = capsys.readouterr()
    expected = [answer, loaded.chat(second, **settings), alone, guided]
    assert printed.out == "".join(chat_terminal._printable(text) + "\n" for text in expected)
    assert "there is no command /nonsense" in printed.err and "Ctrl-C stops an answer" in printed.err


def test_ctrl_c_stops_the_answer_and_not_the_chat(loaded: LoadedModel, monkeypatch, capsys):
    def interrupted(prompt, sampling):
        yield "half an"
        raise KeyboardInterrupt

    conversation = Conversation(loaded, SamplingConfig(temperature=0, maximum_tokens=5), None)
    with monkeypatch.context() as patched:
        patched.setattr(loaded, "stream", interrupted)
        conversation.ask("Hello")
    assert conversation.turns[-1] == {"role": "assistant", "content": "half an"}
    conversation.ask("Go on")
    assert len(conversation.turns) == 4 and capsys.readouterr().out.startswith("half an …\n")


def test_old_turns_are_left_out_when_the_model_cannot_read_them(tmp_path, capsys):
    loaded = LoadedModel.load(make_model(tmp_path / "short", maximum_positions=128))
    conversation = Conversation(loaded, SamplingConfig(temperature=0, maximum_tokens=30), "Be kind.")
    for number in range(6):
        conversation.ask(f"question {number}")
    assert len(conversation.turns) < 12 and conversation.turns[0]["role"] == "user" and conversation.turns[-2]["content"] == "question 5"
    assert capsys.readouterr().err.count("oldest turns are left out") == 1
    conversation.ask("x" * 500)
    assert "that is too long" in capsys.readouterr().err and conversation.turns[-1]["role"] == "assistant"


def test_a_base_model_continues(tmp_path, monkeypatch, capsys):
    folder = make_model(tmp_path / "base", chat=False)
    talk(monkeypatch, folder, "What is", temperature=0, maximum_tokens=8)
    printed = capsys.readouterr()
    assert printed.out.strip("\n") == chat_terminal._printable(LoadedModel.load(folder).generate("What is", temperature=0, maximum_tokens=8)).strip("\n")
    assert "no chat template" in printed.err


def test_what_a_model_writes_does_not_steer_the_terminal():
    assert chat_terminal._printable("a\x1b[2J\x07b\tc\nd\x9b5m中") == "a[2Jb\tc\nd5m中"


@pytest.mark.slow
def test_in_a_real_terminal(model_folder):
    """Typed Chinese is answered; Ctrl-C stops a long answer, the next question is answered, Ctrl-D leaves with status 0."""
    code = f"import torch; torch.set_num_threads(1); from luban.cli.chat_terminal import chat; chat({str(model_folder)!r}, temperature=0, maximum_tokens=3000)"
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm"}, start_new_session=True)
    os.close(slave)
    os.set_blocking(master, False)
    seen = ""

    def more(deadline: float) -> None:
        nonlocal seen
        assert time.monotonic() < deadline and process.poll() is None, seen
        try:
            seen += os.read(master, 65536).decode("utf-8", "replace")
        except BlockingIOError:
            time.sleep(0.005)

    def until(text: str, seconds: float = 180) -> None:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while text not in seen:
            more(deadline)
        seen = seen.partition(text)[2]

    try:
        until("> ")
        for question in ("你好，鲁班", "再来"):
            os.write(master, f"{question}\n".encode())
            until(question)
            while len(seen.strip()) < 20:  # an answer has begun
                more(time.monotonic() + 180)
            os.kill(process.pid, signal.SIGINT)
            until("…")
            until("> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        os.close(master)
