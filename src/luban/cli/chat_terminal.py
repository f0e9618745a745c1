"""A conversation in the terminal: what is typed goes through the model's chat template, the answer appears as it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luban.foundation.config import build
from luban.foundation.console import count_text, say, warn
from luban.foundation.errors import DataError, LubanError
from luban.foundation.messages import t
from luban.inference.config import SamplingConfig
from luban.inference.generate import LoadedModel
from luban.models.counts import parameters
from luban.serving.defaults import sampling_of
from luban.serving.template_check import check_template

HELP = "/clear forgets the conversation, /system TEXT sets the system message, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer"


def chat(model_path: Path | str, *, prompt: str | None = None, system: str | None = None, **sampling: Any) -> None:
    """Talk until /quit or the end of input; with ``prompt``, answer that and return.

    ``sampling`` are SamplingConfig's fields; what they leave open comes from the model's generation_config.json.
    A model without a chat template continues each text instead. Raises DataError when the model cannot be read.
    """
    path = Path(model_path)
    loaded = LoadedModel.load(path)
    try:
        check_template(path, loaded.tokenizer)
    except DataError as error:
        warn("{reason}", reason=error)
    chosen = sampling_of(loaded.tokenizer.generation, build(SamplingConfig, sampling))
    conversation = Conversation(loaded, chosen, system)
    if prompt is not None:
        conversation.ask(prompt)
        return
    _greet(path, loaded)
    while (line := _read_line()) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit", "/q"):
            break
        if command == "/clear":
            conversation.clear()
            say("forgotten")
        elif command == "/system":
            conversation.set_system(rest.strip())
        elif command == "/help":
            say(HELP)
        elif command.startswith("/") and command[1:].isalpha():
            say("there is no command {command}; {help}", command=command, help=t(HELP))
        elif line.strip():
            conversation.ask(line.strip())


class Conversation:
    """The turns so far. What no longer fits the model's context is left out, oldest first, and that is said once."""

    def __init__(self, loaded: LoadedModel, sampling: SamplingConfig, system: str | None):
        self.loaded, self.sampling = loaded, sampling
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.limit = loaded.model.longest_text
        self.said_forgetting = False

    def clear(self) -> None:
        self.turns, self.said_forgetting = [], False

    def set_system(self, text: str) -> None:
        self.system = text or None
        say("system message: {text}" if text else "no system message", text=text)

    def ask(self, text: str) -> None:
        """Print the answer as it is written, and remember it; Ctrl-C ends it where it is."""
        if self.loaded.tokenizer.chat_template is None:
            _write(self._pieces(text))
            return
        self.turns.append({"role": "user", "content": text})
        try:
            messages = self._fitting()
        except LubanError:
            self.turns.pop()
            raise
        if messages is None:
            self.turns.pop()
            say("that is too long: the model reads {limit} tokens", limit=self.limit)
            return
        self.turns.append({"role": "assistant", "content": _write(self._pieces(messages))})

    def _pieces(self, prompt: Any) -> Iterable[str]:
        return self.loaded.stream(prompt, self.sampling)

    def _fitting(self) -> list[dict[str, str]] | None:
        """The system message and as many of the latest turns as leave room for an answer; None if even one does not."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        room = min(self.sampling.maximum_tokens, self.limit // 4)
        turns = self.turns
        while True:
            messages = [*head, *turns]
            length = len(self.loaded.tokenizer.encode_chat(messages, add_generation_prompt=True))
            if length + room <= self.limit or (len(turns) == 1 and length < self.limit):
                break
            if len(turns) == 1:
                return None
            turns = turns[2:]
        if len(turns) < len(self.turns) and not self.said_forgetting:
            self.said_forgetting = True
            say("the conversation is longer than the {limit} tokens the model reads; its oldest turns are left out", limit=self.limit)
        self.turns = turns
        return messages


def _greet(path: Path, loaded: LoadedModel) -> None:
    shape = loaded.model.shape
    say(
        "{name}: {count} parameters, reads {limit} tokens; small models know little and make things up",
        name=path.resolve().name,
        count=count_text(parameters(shape)["total"]),
        limit=shape.maximum_positions,
    )
    if loaded.tokenizer.chat_template is None:
        warn("this model has no chat template: it does not answer, it continues what you write")
    say(HELP)


def _read_line() -> str | None:
    """A line from the user, or None at the end of input. Ctrl-C on the prompt only drops what was typed."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (editing of wide characters, and a history)

        # Between \001 and \002 stands what takes no room on the line, so that editing knows where it is.
        prompt = "\001\033[1;36m\002" + "> " + "\001\033[0m\002"
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            say("Ctrl-D or /quit leaves")


def _write(pieces: Iterable[str]) -> str:
    """Print pieces as they come; what was printed until the end or Ctrl-C."""
    written = ""
    try:
        for piece in pieces:
            written += piece
            print(_printable(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    print(flush=True)
    return written


def _printable(text: str) -> str:
    """Without control characters: what a model writes must not steer the terminal."""
    kept = "".join(
        character for character in text if character in "\n\t" or not ("\x00" <= character < "\x20" or "\x7f" <= character < "\xa0")
    )
    encoding = sys.stdout.encoding or "utf-8"
    return kept.encode(encoding, "replace").decode(encoding)
