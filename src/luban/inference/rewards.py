"""Scores of answers by a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luban.foundation.errors import DataError
from luban.inference.padding import padded_batches
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame
from luban.tokenizer.tokenizer import Tokenizer

ANSWERS = ("response", "answer", "completion", "output")


def frame_answer(tokenizer: Tokenizer, messages: Sequence[dict], settings: Mapping[str, Any], tools: list[dict] | None = None) -> Framed:
    """A conversation that ends with the answer to be judged, as training and prediction read it: by the chat template (decoders), or what was
    asked and the answer as a pair of texts. Of what is too long the beginning is lost, so that the answer stays."""
    maximum = settings.get("maximum_tokens", 512)
    if settings.get("by_template"):
        ids = tokenizer.encode_chat(list(messages), tools=tools)
        kept = ids[-maximum:]
        return Framed(kept, [0] * len(kept), [], [], len(ids) - len(kept))
    asked = "\n".join(str(message.get("content") or "") for message in messages[:-1])
    return frame(tokenizer, asked, str(messages[-1].get("content") or ""), maximum=maximum, truncate="longest")


def reward(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"score"}`` for ``{"messages"}`` that end with the answer, or ``{"prompt", "response"}``; ``{"scores"}`` of both answers for
    ``{"messages" or "prompt", "chosen", "rejected"}``; ``cut_tokens`` where something was too long to be read whole."""
    asked = [_conversations(item, number) for number, item in enumerate(items)]
    framed = [frame_answer(tokenizer, messages, model.head.settings, item.get("tools")) for item, several in zip(items, asked, strict=True) for messages in several]
    scores = [0.0] * len(framed)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        for number, score in zip(batch.numbers, batch.scores(model).float()[:, 0].tolist(), strict=True):
            scores[number] = score
    found, start = [], 0
    for several in asked:
        own, cut = scores[start : start + len(several)], sum(one.truncated for one in framed[start : start + len(several)])
        found.append({**({"score": own[0]} if len(own) == 1 else {"scores": own}), **({"cut_tokens": cut} if cut else {})})
        start += len(several)
    return found


def _conversations(item: dict[str, Any], number: int) -> list[list[dict]]:
    """The conversations of an item that are scored."""
    if isinstance(item.get("messages"), list):
        prompt = item["messages"]
    elif "prompt" in item or "text" in item:
        prompt = item.get("prompt", item.get("text"))
        prompt = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
    else:
        raise DataError("item {number}: there is no conversation to score", "this model reads messages, or a prompt and a response; the item has: {known}", "", number=number + 1, known=", ".join(map(str, item)))
    if "chosen" in item and "rejected" in item:
        found = [[*prompt, *_messages(item[name])] for name in ("chosen", "rejected")]
    else:
        answer = next((item[name] for name in ANSWERS if item.get(name) is not None), None)
        found = [prompt if answer is None else [*prompt, *_messages(answer)]]
    for messages in found:
        if not messages or not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages) or messages[-1]["role"] != "assistant":
            raise DataError("item {number}: the conversation does not end with an answer", "what is scored is the assistant's last words", "give a response beside the prompt, or messages with the answer at their end", number=number + 1)
    return found


def _messages(answer: Any) -> list[dict]:
    return answer if isinstance(answer, list) else [answer if isinstance(answer, dict) else {"role": "assistant", "content": str(answer)}]
