"""The tokenizer as the other rooms see it: text to ids and back, chats to ids, and a directory transformers opens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Core

from luban.foundation.artifacts import fingerprint, write_bytes, write_json
from luban.foundation.errors import DataError
from luban.foundation.hardware import cores
from luban.tokenizer import framing, supervision, templates
from luban.tokenizer.decoding import DecodeStream, bytes_of_tokens, decoder_kinds
from luban.tokenizer.fast import FastEncoder, fast_encoder

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# How known families call the token between documents, for tokenizers whose eos_token ends a turn instead.
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "[SEP]")
LARGE_CHARACTERS = 200_000  # of a batch; below that the fast way is not worth making (half a second)
_SENTINEL = re.compile(r"<extra_id_(\d+)>")  # T5's names
# Two code points that no text may hold (Unicode noncharacters): they fence special-token text inside messages.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_FENCED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}|[{_OPEN}{_CLOSE}]")


class Tokenizer:
    """A `tokenizers` tokenizer with its special tokens and chat template.

    ``encode`` never reads control tokens out of a text: a document or a user that writes ``<|im_end|>`` gets the
    characters, not the token.
    """

    def __init__(
        self, core: Core, config: dict[str, Any], generation: dict[str, Any] | None = None, clock: Callable[[], datetime] = datetime.now
    ):
        core.no_truncation()
        core.no_padding()
        self.core, self.config, self.generation, self.clock = core, config, generation or {}, clock

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Open a directory with tokenizer.json (and tokenizer_config.json, chat_template.jinja), or the file itself."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                "{path}: there is no tokenizer.json", "Luban reads the one-file format that every current model ships",
                "AutoTokenizer.from_pretrained(…).save_pretrained(folder) of transformers writes it", path=path,
            )  # fmt: skip
        try:
            core = Core.from_file(str(file))
        except Exception as error:  # tokenizers raises the bare class
            raise DataError("{path} is no tokenizer: {error}", "", "restore the file", path=file, error=str(error)[:200]) from None
        config = _read_json(folder / "tokenizer_config.json")
        named = folder / "special_tokens_map.json"
        config = {**_read_json(named), **config}
        template = folder / "chat_template.jinja"
        if template.is_file():  # transformers 5 writes it, and prefers it
            config["chat_template"] = template.read_text(encoding="utf-8")
        return cls(core, config, _read_json(folder / "generation_config.json"))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer opens with the same ids."""
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "tokenizer.json", self.core.to_str(pretty=True).encode())
        config = {key: value for key, value in self.config.items() if key != "added_tokens_decoder"}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config},
        )
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # an older one would hide the template

    # ---- what it is

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return max(self.core.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Named special tokens: ``{"eos_token": "<|endoftext|>", …}``."""
        named = {name: _content(self.config.get(name)) for name in SPECIAL_NAMES}
        return {name: token for name, token in named.items() if token}

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Every control token of the vocabulary with its id."""
        return {token.content: index for index, token in sorted(self.core.get_added_tokens_decoder().items()) if token.special}

    @property
    def chat_template(self) -> str | None:
        """The Jinja source, or None for a tokenizer that has no chat format."""
        found = self.config.get("chat_template")
        if isinstance(found, list):  # several named templates, as transformers once wrote them
            found = next((item["template"] for item in found if item.get("name") == "default"), None)
        return found or None

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The control token that the template writes right after the assistant's words, or None."""
        if self.chat_template is None:
            return None
        probe = "luban-probe"
        try:
            text = self.render([{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}])
        except DataError:
            return None
        pattern = self._special_pattern
        match = pattern.search(text, text.find(probe) + len(probe)) if pattern and probe in text else None
        return self.special_ids[match.group()] if match else None

    @cached_property
    def end_of_text_id(self) -> int:
        """The token between documents. Raises DataError where the tokenizer has none."""
        token = self.special_tokens.get("eos_token")
        index = self.core.token_to_id(token) if token else None
        if index is not None and index != self.end_of_turn_id:
            return index
        for name in (*END_OF_TEXT_NAMES, token):
            found = self.core.token_to_id(name) if name else None
            if found is not None:
                return found
        raise DataError(
            "the tokenizer has no end-of-text token", "documents could not be kept apart", "name one as eos_token in tokenizer_config.json"
        )

    @cached_property
    def begin_of_text_id(self) -> int | None:
        """The token that this tokenizer's models expect before every text, or None (Llama has one, Qwen has none)."""
        plain, full = self.core.encode("a", add_special_tokens=False).ids, self.core.encode("a", add_special_tokens=True).ids
        if len(full) > len(plain) and full[0] != plain[0]:
            return full[0]
        token = self.special_tokens.get("bos_token") if self.config.get("add_bos_token") else None
        return self.core.token_to_id(token) if token else None

    @cached_property
    def pad_id(self) -> int:
        """The token that fills rows; the end of text where no pad token is named."""
        token = self.special_tokens.get("pad_token")
        index = self.core.token_to_id(token) if token else None
        return self.end_of_text_id if index is None else index

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return self.core.token_to_id(token) if token else None

    @cached_property
    def unk_id(self) -> int | None:
        """The token for what the vocabulary cannot write, or None."""
        return self._named_id("unk_token")

    @cached_property
    def mask_id(self) -> int | None:
        """The token that hides another in masked language modelling, or None."""
        return self._named_id("mask_token")

    @cached_property
    def cls_id(self) -> int | None:
        """The token in front of an encoder's text, whose vector stands for the whole, or None."""
        return self._named_id("cls_token")

    @cached_property
    def sep_id(self) -> int | None:
        """The token between two texts and behind the last, or None."""
        return self._named_id("sep_token")

    @cached_property
    def sentinel_ids(self) -> list[int]:
        """T5's ``<extra_id_0>``, ``<extra_id_1>`` …, in this order; they stand for the spans that were taken out of a text."""
        found = [(int(match.group(1)), index) for token, index in self.special_ids.items() if (match := _SENTINEL.fullmatch(token))]
        return [index for _, index in sorted(found)]

    @cached_property
    def is_special(self) -> np.ndarray:
        """Whether an id is a control token, or no token at all [vocabulary_size] bool: what is never masked, and never drawn."""
        special = np.ones(self.vocabulary_size, dtype=bool)
        special[list(self.core.get_vocab(with_added_tokens=True).values())] = False
        special[list(self.special_ids.values())] = True
        return special

    @cached_property
    def layout(self) -> framing.Layout:
        """Which special tokens stand around one text and around two."""
        return framing.find_layout(self)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens at which generation ends: end of text, end of turn, and what generation_config.json names."""
        named = self.generation.get("eos_token_id") or []
        eos = self.core.token_to_id(self.special_tokens["eos_token"]) if "eos_token" in self.special_tokens else None
        found = [self.end_of_text_id, self.end_of_turn_id, eos, *(named if isinstance(named, list) else [named])]
        return list(dict.fromkeys(index for index in found if index is not None))

    def fingerprint(self) -> str:
        """Of everything that decides ids and prompts: vocabulary, merges, normaliser, template, special and stop tokens."""
        core = json.loads(self.core.to_str())
        return fingerprint("tokenizer", core, self.chat_template, self.special_tokens, sorted(self.stop_ids))

    # ---- text to ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of a text, with nothing added. Control tokens in it are text unless ``allow_special``."""
        core = self.core if allow_special else self._plain
        return core.encode(_valid(text), add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts, on all cores (the interpreter's lock is released)."""
        if sum(map(len, texts)) >= LARGE_CHARACTERS and self._fast:
            return self._fast.encode_batch([_valid(text) for text in texts], cores())
        encodings = self._plain.encode_batch_fast([_valid(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def byte_level(self) -> bool:
        """True where every token stands for bytes (GPT-2's scheme)."""
        return "ByteLevel" in decoder_kinds(self.core)

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(self._plain)

    @cached_property
    def _plain(self) -> Core:
        """The same tokenizer, blind to control tokens. A second object, so that threads need no lock around a switch."""
        data = json.loads(self.core.to_str())
        if data["model"]["type"] == "Unigram":
            # Its search would read a control token out of text by itself (its score is often 0, the best there is), so these
            # get names that no text can hold. Their ids stay.
            data["model"]["vocab"] = [
                (f"{_OPEN}{index}" if token in self.special_ids and index != data["model"]["unk_id"] else token, score)
                for index, (token, score) in enumerate(data["model"]["vocab"])
            ]
        core = Core.from_str(json.dumps(data))
        core.encode_special_tokens = True
        return core

    # ---- ids to text

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        if self.byte_level:
            # Not core.decode: it takes an added word such as "café" for byte stand-ins.
            table = self._byte_table if skip_special else self._byte_table_with_specials
            return b"".join(table[index] for index in ids if 0 <= index < len(table)).decode("utf-8", "replace")
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self) -> DecodeStream:
        """A decoder that takes one token at a time."""
        return DecodeStream(self._byte_table if self.byte_level else None, self.decode)

    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each token id stands for [vocabulary_size] int32; special tokens 0."""
        return np.array([len(item) for item in self._byte_table], dtype=np.int32)

    @cached_property
    def _byte_table(self) -> list[bytes]:
        return bytes_of_tokens(self.core, self.vocabulary_size, self.byte_level)

    @cached_property
    def _byte_table_with_specials(self) -> list[bytes]:
        table = list(self._byte_table)
        for token, index in self.special_ids.items():
            table[index] = token.encode()
        return table

    # ---- chats

    def render(self, messages: list[dict], *, add_generation_prompt: bool = False, tools: list[dict] | None = None) -> str:
        """The text of a conversation by the tokenizer's own template."""
        if self.chat_template is None:
            raise DataError(
                "the tokenizer has no chat template",
                "it does not say how turns are written",
                "set chat_template in tokenizer_config.json, or train the tokenizer with chat_template: chatml",
            )
        return templates.render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            specials=self.special_tokens,
            clock=self.clock,
        )

    def encode_chat(self, messages: list[dict], *, add_generation_prompt: bool = False, tools: list[dict] | None = None) -> list[int]:
        """Token ids of a conversation. The template's control tokens count; the same text inside a message is text."""
        messages, tools = self.fence(messages), self.fence(tools)
        return self.encode_fenced(self.render(messages, add_generation_prompt=add_generation_prompt, tools=tools))[0]

    def encode_supervised(self, messages: list[dict], *, tools: list[dict] | None = None) -> tuple[list[int], list[float]]:
        """Ids and, for each, its weight in training: 1 on the assistant's words and the token that ends the turn, else 0.

        A message's ``weight`` scales its words. Where the template writes a turn otherwise once others follow
        (thinking that is taken out, say), only the turns that read the same are supervised here;
        ``encode_examples`` gives the others examples of their own.
        """
        example = supervision.supervise(self, messages, tools)[0]
        return example.ids, example.weights

    def encode_examples(self, messages: list[dict], *, tools: list[dict] | None = None) -> list[supervision.Supervised]:
        """The fewest training sequences in which every assistant turn is supervised once, as it is generated."""
        return supervision.supervise(self, messages, tools)

    def fence(self, data: Any) -> Any:
        """Messages or tools with every control token that their text spells fenced off from the template's own."""
        pattern = self._special_pattern
        if pattern is None or not data or not any(pattern.search(text) for text in templates.strings_in(data)):
            return data
        return templates.map_strings(data, lambda text: pattern.sub(lambda match: _OPEN + match.group() + _CLOSE, text))

    def encode_fenced(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a rendered (fenced) chat and each token's span of characters in it."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []

        def add(core: Core, piece: str, start: int) -> None:
            if piece:
                encoding = core.encode(_valid(piece), add_special_tokens=False)
                ids.extend(encoding.ids)
                spans.extend((start + left, start + right) for left, right in encoding.offsets)

        done = 0
        for match in _FENCED.finditer(text):
            add(self.core, text[done : match.start()], done)
            add(self._plain, match.group(1) or "", match.start() + 1)
            done = match.end()
        add(self.core, text[done:], done)
        return ids, spans

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        names = sorted((name for name in self.special_ids if name), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None


def _valid(text: str) -> str:
    """Half a surrogate pair (which JSON can carry) is no character: it becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("{path} is no valid JSON: {error}", "", "restore the file", path=path, error=error) from None
    return found if isinstance(found, dict) else {}
