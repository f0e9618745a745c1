"""The preview tells learned from given, with and without colour, in English and Chinese."""

from __future__ import annotations

import io

from rich.console import Console

from luban.examples import preview
from luban.examples.conversations import Conversation
from luban.examples.preview import show
from luban.examples.supervised import supervised_examples
from luban.foundation import console

EXPECTED = """<|im_start|>user
你是谁？ <b>[bold]<|im_end|>
<|im_start|>assistant
⟦我是鲁班。<|im_end|>⟧
<|im_start|>user
Sing!<|im_end|>
<|im_start|>assistant
⟦×0.5 [red]la la<|im_end|>⟧
"""
CHAT = [
    {"role": "user", "content": "你是谁？ <b>[bold]"}, {"role": "assistant", "content": "我是鲁班。"},
    {"role": "user", "content": "Sing!"}, {"role": "assistant", "content": "[red]la la", "weight": 0.5},
]  # fmt: skip


def printed(monkeypatch, bpe, examples, **options):
    file = io.StringIO()
    monkeypatch.setattr(console, "_console", Console(file=file, width=30, soft_wrap=True, highlight=False, **options))
    monkeypatch.setattr(console.sys, "stderr", file)
    show(examples, bpe)
    return file.getvalue()


def test_without_colour_the_brackets_tell(bpe, monkeypatch):
    examples = supervised_examples([Conversation(CHAT, None, "chat.jsonl:3")], bpe)
    text = printed(monkeypatch, bpe, examples, no_color=True)
    assert EXPECTED in text and "chat.jsonl:3" in text and "\x1b" not in text


def test_with_colour_what_is_learned_is_green_and_the_rest_dim(bpe, monkeypatch):
    examples = supervised_examples([Conversation(CHAT, None, "")], bpe)
    text = printed(monkeypatch, bpe, examples, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m⟦我是鲁班。<|im_end|>⟧" in text and "\x1b[2m<|im_start|>user" in text


def test_three_are_shown_spread_over_the_set_and_long_ones_shortened(bpe, monkeypatch):
    chats = [
        Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": f"answer {i} " * 200}], None, f"f:{i}")
        for i in range(9)
    ]
    text = printed(monkeypatch, bpe, supervised_examples(chats, bpe), no_color=True)
    assert [f"f:{i}:" in text for i in range(9)] == [True, False, False] * 3
    assert "…" in text and len(text) < 3500
    assert preview.preview(supervised_examples(chats[:1], bpe)[0], bpe).plain.count("⟦") == 1
