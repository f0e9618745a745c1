"""The stage: from a corpus to a directory, in bounded memory, with the shares of languages that were asked for."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tokenizer_samples import chinese, english, tokenizer_of, write_corpus
from transformers import AutoTokenizer

from luban.corpus.documents import Document
from luban.foundation.artifacts import Artifact, Work
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError
from luban.tokenizer import stage
from luban.tokenizer.config import TrainTokenizerConfig
from luban.tokenizer.framing import frame
from luban.tokenizer.sampling import Sample
from luban.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage") / "corpus"
    train = [("en", text) for text in english(80_000)] + [("zh", text) for text in chinese(120)]
    return write_corpus(folder, train=train, validation=[("en", "To be, or not to be"), ("zh", "白日依山尽")], test=[])


def run(tmp_path, corpus, pretrained=None, name="tokenizer", **fields):
    path = tmp_path / name
    path.mkdir()
    work = Work(
        path,
        {
            "corpus": Artifact(corpus, {"kind": "curate", "licences": ["CC0"]}) if corpus else None,
            "pretrained": pretrained,
            "chat_template_file": fields.pop("file", None),
        },
    )
    given = {"corpus": "corpus"} if corpus else {}
    stage.run(build(TrainTokenizerConfig, {**given, **({"pretrained": "p"} if pretrained else {}), **fields}), work)
    return work


def test_a_corpus_becomes_a_directory_that_transformers_opens(tmp_path, corpus):
    work = run(tmp_path, corpus, vocabulary_size=900)
    tokenizer = Tokenizer.load(work.path)
    assert tokenizer.vocabulary_size == work.metrics["vocabulary_size"] == 900 and work.licences == ["CC0"]
    assert AutoTokenizer.from_pretrained(work.path).encode("白日 To be", add_special_tokens=False) == tokenizer.encode("白日 To be")
    figures = json.loads((work.path / "evaluation.json").read_text())
    assert figures["every_byte_survives"] and figures["documents_survive"] == 1 and set(figures["languages"]) == {"en", "zh"}
    assert figures["languages"]["en"]["documents"] == 1  # the validation text, which it has not seen
    assert "wall" not in str(figures) and "second" not in str(figures)


def test_text_that_the_cap_of_a_document_leaves_out_is_said(tmp_path, corpus, capsys):
    run(tmp_path, corpus, vocabulary_size=600)
    assert "was not read" not in capsys.readouterr().err.replace("\n", " ")
    run(tmp_path, corpus, name="short", vocabulary_size=400, maximum_document_characters=5)
    assert "the first 5 characters count" in capsys.readouterr().err.replace("\n", " ")


def test_the_same_recipe_gives_the_same_bytes(tmp_path, corpus):
    one, other = (run(tmp_path, corpus, name=name, vocabulary_size=700).path for name in ("a", "b"))
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_auto_follows_the_corpus(tmp_path, corpus):
    work = run(tmp_path, corpus)
    assert work.resolved["vocabulary_size"] == 896 and Tokenizer.load(work.path).vocabulary_size == 896  # 2.9 √94,000 bytes


def test_pretrained_keeps_its_template_and_can_be_extended(tmp_path, corpus):
    given = tokenizer_of("byte_bpe", 600, english(40_000))
    given.config["chat_template"] = "{{ messages[0].content }}"
    given.save(tmp_path / "given")
    work = run(tmp_path, None, tmp_path / "given", name="as-it-is")
    assert Tokenizer.load(work.path).fingerprint() == given.fingerprint()
    work = run(tmp_path, corpus, tmp_path / "given", name="more", extend=["鲁班"], extend_learned=50)
    added = json.loads((work.path / "extension.json").read_text())["added"]
    assert [item["id"] for item in added] == list(range(600, 651)) and added[-1]["text"] == "鲁班"
    assert Tokenizer.load(work.path).chat_template == "{{ messages[0].content }}"
    work = run(tmp_path, None, tmp_path / "given", name="template", chat_template="chatml")
    assert "im_start" in Tokenizer.load(work.path).chat_template


def test_a_style_brings_its_algorithm_and_no_chat_template(tmp_path, corpus):
    for style, algorithm, end in (("bert", "WordPiece", "[SEP]"), ("t5", "Unigram", "</s>"), ("roberta", "BPE", "</s>")):
        work = run(tmp_path, corpus, name=style, vocabulary_size=1400, style=style)
        tokenizer = Tokenizer.load(work.path)
        assert json.loads(tokenizer.core.to_str())["model"]["type"] == algorithm and tokenizer.chat_template is None
        assert tokenizer.core.id_to_token(tokenizer.end_of_text_id) == end
        expected = AutoTokenizer.from_pretrained(work.path)("白日 To be", "or not")
        assert frame(tokenizer, "白日 To be", "or not", maximum=99).ids == expected["input_ids"]
        assert work.resolved["algorithm"] == {"BPE": "byte_bpe"}.get(algorithm, algorithm.lower())
    template = "{{ messages[0].content }}"
    work = run(tmp_path, corpus, name="both", vocabulary_size=900, style="bert", algorithm="character", chat_template=template)
    assert Tokenizer.load(work.path).chat_template == template
    with pytest.raises(ConfigError, match="learned"):
        run(tmp_path, None, tmp_path / "bert", name="taken", style="bert")


def test_documents_of_a_styled_tokenizer_are_kept_apart_by_its_own_tokens(tmp_path, corpus):
    tokenizer = Tokenizer.load(run(tmp_path, corpus, vocabulary_size=900, style="bert").path)
    assert (tokenizer.begin_of_text_id, tokenizer.end_of_text_id, tokenizer.pad_id) == (2, 3, 0)


def test_a_template_from_a_file(tmp_path, corpus):
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}!")
    work = run(tmp_path, corpus, vocabulary_size=600, file=tmp_path / "t.jinja", chat_template_file="t.jinja")
    assert Tokenizer.load(work.path).render([{"role": "user", "content": "好"}]) == "好!"
    (tmp_path / "t.jinja").write_text("{% for %}")
    with pytest.raises(DataError, match="Jinja"):
        run(tmp_path, corpus, name="broken", vocabulary_size=600, file=tmp_path / "t.jinja", chat_template_file="t.jinja")


def test_mistakes_are_told(tmp_path, corpus):
    with pytest.raises(ConfigError, match="nothing to learn"):
        run(tmp_path, None, name="a")
    with pytest.raises(ConfigError, match="no text in de"):
        run(tmp_path, corpus, name="b", language_weights={"de": 1, "en": 1})
    with pytest.raises(DataError, match="no training text"):
        run(tmp_path, write_corpus(tmp_path / "empty", train=[]), name="c")
    with pytest.raises(ConfigError, match="algorithm"):
        build(TrainTokenizerConfig, {"corpus": "c", "algorithm": "bpe"})


def documents():
    """Nine English documents for each Chinese one, 2,000 in all."""
    for index in range(2000):
        language = "zh" if index % 10 == 0 else "en"
        yield Document(f"{index}", ("中" if language == "zh" else "e") * 100, language)


def sampled(**fields):
    config = build(TrainTokenizerConfig, {"corpus": "c", **fields})
    sample = Sample.plan(config, documents())
    return sample, list(sample.texts(documents, seed=0))


def test_language_weights_set_the_shares():
    _, texts = sampled(language_weights={"en": 1, "zh": 1}, maximum_run_characters=200)
    counts = Counter(text[0] for text in texts)
    assert sum(counts.values()) == pytest.approx(2000, rel=0.05) and counts["中"] / len(texts) == pytest.approx(0.5, abs=0.03)
    _, texts = sampled(language_weights={"zh": 1})
    assert {text[0] for text in texts} == {"中"}
    assert len(sampled()[1]) == 2000  # no weights: every document once


def test_caps_bound_what_is_read():
    sample, texts = sampled(maximum_characters=20_000, maximum_document_characters=50, maximum_run_characters=200)
    assert sample.characters == {"en": 90_000, "zh": 10_000} and max(map(len, texts)) == 50
    assert sum(map(len, texts)) == pytest.approx(20_000, rel=0.1)


def test_scripts_without_spaces_have_a_bound_of_their_own_and_shares_stay():
    sample, texts = sampled(maximum_unspaced_characters=5_000, maximum_run_characters=200)
    assert sample.unspaced == {"en": 0, "zh": 20_000}
    counts = Counter(text[0] for text in texts)
    assert 100 * counts["中"] == pytest.approx(5_000, rel=0.35) and counts["e"] / len(texts) == pytest.approx(0.9, abs=0.03)


def test_adding_documents_moves_no_others_lot():
    config = build(TrainTokenizerConfig, {"corpus": "c"})
    few = Sample(config, rates={"en": 0.3})
    texts = [Document(str(index), f"text {index}", "en") for index in range(300)]
    first = list(few.texts(lambda: texts[::2], seed=1))
    assert [text for text in few.texts(lambda: texts, seed=1) if text in {item.text for item in texts[::2]}] == first


def test_long_runs_of_han_are_cut_in_training_text_only():
    config = build(TrainTokenizerConfig, {"corpus": "c", "maximum_run_characters": 4})
    sample = Sample(config, rates={"zh": 1.0})
    (text,) = sample.texts(lambda: [Document("1", "一二三四五六七八九。abcdefgh 甲乙丙丁", "zh")], seed=0)
    assert text == "一二三四\n五六七八\n九。abcdefgh 甲乙丙丁"


def test_documents_are_streamed_one_at_a_time():
    """The generator is never more than one document ahead of the reader."""
    made = Counter()

    def endless():
        while True:
            made["documents"] += 1
            yield Document(str(made["documents"]), "x" * 1000, "en")

    config = build(TrainTokenizerConfig, {"corpus": "c"})
    stream = Sample(config, rates={"en": 1.0}).texts(endless, seed=0)
    for taken in range(1, 200):
        next(stream)
        assert made["documents"] <= taken + 1
