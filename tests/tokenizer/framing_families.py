"""Small tokenizers of each family, built with the tokenizers library alone and opened by transformers."""

from __future__ import annotations

from pathlib import Path

from tokenizer_samples import chinese, english
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luban.tokenizer.tokenizer import Tokenizer

FAMILIES = ("bert", "roberta", "t5", "bart", "gpt2", "llama")
TEXTS = [
    "", "a", "To be, or not to be: that is the question.", "白日依山尽，黄河入海流。", "Mixed 中文 and English, 𠮷野家!", "  spaces \t around \n\n ",
    "Café naïve cafe\u0301 ÀÉÎ über Straße", "x" * 150, "word " * 60, "二十一世紀 3.14 ½ ﬁne ①", "\u200bzero\u200bwidth\u0000nul", "🙂👍🏽 emoji",
]  # fmt: skip


def build(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a family, as transformers holds it."""
    texts = english(40_000) + chinese(60)
    if family == "bert":
        core, special = Core(models.WordPiece(unk_token="[UNK]")), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False))
        core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        core.decoder = decoders.WordPiece()
        core.enable_padding(length=64)  # as MiniLM's file does
        core.enable_truncation(16)
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
        )
    if family == "t5":
        core, special = Core(models.Unigram()), ["<pad>", "</s>", "<unk>"]
        core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\t", " ")])
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        core.train_from_iterator(
            texts, trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
        )
        core.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    core = Core(models.BPE())
    if family == "llama":
        special = ["<unk>", "<s>", "</s>"]
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first")
        core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False))
        core.model.unk_token = "<unk>"
        core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    special = ["<|endoftext|>"] if family == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    if family == "gpt2":
        core.post_processor = processors.ByteLevel(trim_offsets=False)
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=family == "roberta", add_prefix_space=False)
    named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **named)


def both(family: str, folder: Path) -> tuple[PreTrainedTokenizerFast, Tokenizer]:
    """Theirs, and ours read from what theirs wrote."""
    theirs = build(family)
    theirs.save_pretrained(folder / family)
    return theirs, Tokenizer.load(folder / family)
