"""Planted clusters, closed forms, and files of other tools."""

import gzip
import struct

import numpy as np
import pytest

from luban.fitting.glove import GloVeSettings, count_cooccurrences, train_glove
from luban.fitting.vectors import read_pairs
from luban.fitting.word2vec import Word2VecSettings, train_word2vec
from luban.foundation.errors import DataError
from luban.models.vector_files import read_vectors, write_word2vec
from luban.models.vectors import WordVectors, initial_rows, resized

TOPICS, WORDS = 5, 8


def planted(documents=500, seed=0):
    """Documents of one topic each; words 8t to 8t + 7 belong to topic t. Ends with -1 after each."""
    random = np.random.default_rng(seed)
    rows = [np.append(random.integers(0, WORDS, 20) + WORDS * random.integers(0, TOPICS), -1) for _ in range(documents)]
    ids = np.concatenate(rows).astype(np.int32)
    return ids, np.bincount(ids[ids >= 0], minlength=TOPICS * WORDS)


def purity(vectors):
    """Share of words whose seven nearest words are the seven others of the topic."""
    model = WordVectors([str(i) for i in range(len(vectors))], vectors)
    right = [int(name) // WORDS == word // WORDS for word in range(len(vectors)) for name, _ in model.nearest(str(word), WORDS - 1)]
    return sum(right) / len(right)


@pytest.mark.parametrize(("architecture", "rate"), [("skip_gram", 0.025), ("bag_of_words", 0.05)])
def test_word2vec_finds_planted_topics(architecture, rate):
    ids, counts = planted()
    settings = Word2VecSettings(architecture, dimension=16, window=4, epochs=10, learning_rate=rate, subsample=0.0)
    vectors, losses = train_word2vec(ids, counts, settings, 1)
    assert losses[-1] < losses[0] and purity(vectors) > 0.99
    again, _ = train_word2vec(ids, counts, settings, 1)
    assert np.array_equal(vectors, again)
    other, _ = train_word2vec(ids, counts, settings, 2)
    assert not np.array_equal(vectors, other)


def test_word2vec_on_almost_nothing():
    for ids in ([0, -1], [-1], [0, 0, -1, 1], [1, -1, 0]):
        vectors, _ = train_word2vec(np.array(ids, np.int32), np.array([2, 1]), Word2VecSettings(dimension=3, epochs=1), 0)
        assert vectors.shape == (2, 3) and np.isfinite(vectors).all()


def test_cooccurrences_equal_a_brute_force_sum(tmp_path):
    random = np.random.default_rng(0)
    ids = random.integers(-1, 6, 300).astype(np.int32)
    wanted = np.zeros((6, 6))
    for i, one in enumerate(ids):
        for distance in range(1, 5):
            if one < 0 or i + distance >= len(ids) or (ids[i : i + distance + 1] < 0).any():
                break
            two = ids[i + distance]
            wanted[one, two] += 1 / distance
            wanted[two, one] += 1 / distance
    count = count_cooccurrences(ids, 6, 4, tmp_path, 1)
    keys, values = np.fromfile(tmp_path / "keys.i64", np.int64), np.fromfile(tmp_path / "values.f64")
    assert count == len(keys) and (keys // 6 <= keys % 6).all()
    found = np.zeros((6, 6))
    found[keys // 6, keys % 6] = values
    assert found == pytest.approx(np.triu(wanted))


def test_glove_finds_planted_topics(tmp_path):
    ids, counts = planted()
    entries = count_cooccurrences(ids, len(counts), 5, tmp_path, 10**8)
    settings = GloVeSettings(dimension=16, window=5, epochs=60, learning_rate=0.2)
    vectors, losses = train_glove(tmp_path, entries, len(counts), settings, 1)
    assert losses[-1] < 0.1 * losses[0] and purity(vectors) > 0.99
    assert np.array_equal(vectors, train_glove(tmp_path, entries, len(counts), settings, 1)[0])


def test_glove_fits_a_matrix_of_low_rank(tmp_path):
    """Where log x is itself a product of short vectors, the loss must go to nothing."""
    random = np.random.default_rng(0)
    words = 30
    base = random.normal(0, 0.7, (words, 3))
    logs = base @ base.T
    one, two = np.triu_indices(words)
    (one * words + two).astype(np.int64).tofile(tmp_path / "keys.i64")
    np.exp(logs[one, two]).tofile(tmp_path / "values.f64")
    _, losses = train_glove(tmp_path, len(one), words, GloVeSettings(dimension=6, epochs=600, learning_rate=0.1, maximum_count=1.0), 0)
    assert losses[-1] < 1e-2 * losses[0]


# ------------------------------------------------------------------------------------------------------ vectors


def small():
    words = ["king", "queen", "man", "woman", "鲁班", "a b", "new\nline", "back\\n"]
    return WordVectors(words, np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), {"method": "word2vec"})


def test_a_folder_keeps_everything(tmp_path):
    vectors = small()
    vectors.save(tmp_path)
    again = WordVectors.load(tmp_path)
    assert again.words == vectors.words and np.array_equal(again.vectors, vectors.vectors) and again.facts == vectors.facts
    (tmp_path / "words.txt").write_text("king\n", encoding="utf-8")
    with pytest.raises(DataError, match="fit together"):
        WordVectors.load(tmp_path)
    (tmp_path / "vectors.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot|can be read"):
        WordVectors.load(tmp_path)


def test_nearest_and_analogy_are_cosines():
    words = ["man", "woman", "king", "queen", "far", "zero"]
    matrix = np.array([[1, 0, 0.1], [1, 1, 0.1], [1, 0, 1], [1, 1, 1], [-1, -3, 0], [0, 0, 0]], np.float32)
    vectors = WordVectors(words, matrix)
    assert vectors.analogy("man", "woman", "king", 1)[0][0] == "queen"
    name, cosine = vectors.nearest("man", 1)[0]
    wanted = {w: matrix[0] @ row / np.linalg.norm(matrix[0]) / max(np.linalg.norm(row), 1e-9) for w, row in zip(words[1:], matrix[1:], strict=True)}
    assert name == max(wanted, key=wanted.get) and cosine == pytest.approx(wanted[name], rel=1e-6)
    assert len(vectors.nearest("man", 100)) == 5 and "man" not in dict(vectors.nearest("man", 100))


def test_similarity_is_spearmans():
    from scipy.stats import spearmanr

    vectors = small()
    pairs = [("king", "queen", 9.0), ("king", "man", 5.0), ("queen", "woman", 5.0), ("man", "woman", 1.0), ("king", "鲁班", 2.0), ("king", "nobody", 3.0)]
    found = vectors.evaluate_pairs(pairs)
    cosines = [vectors.similarity(a, b) for a, b, _ in pairs[:5]]
    assert found["spearman"] == pytest.approx(spearmanr(cosines, [score for _, _, score in pairs[:5]]).statistic)
    assert (found["pairs"], found["missing"]) == (5, 1)
    assert np.isnan(vectors.evaluate_pairs([])["spearman"])


def test_text_files_of_other_tools(tmp_path):
    vectors = small()
    write_word2vec(vectors, tmp_path / "v.txt")
    again = read_vectors(tmp_path / "v.txt")
    assert again.words == ["king", "queen", "man", "woman", "鲁班", "a▁b", "new▁line", "back\\n"]
    assert again.vectors == pytest.approx(vectors.vectors, rel=1e-4)
    glove = "".join(line + "\n" for line in (tmp_path / "v.txt").read_text(encoding="utf-8").split("\n")[1:] if line)
    with gzip.open(tmp_path / "glove.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write(glove + ". . . " + " ".join(["0.5"] * 5) + "\n")  # a word with spaces, as in GloVe's largest file
    found = read_vectors(tmp_path / "glove.txt.gz")
    assert found.words[-1] == ". . ." and len(found) == 9 and found.vectors[:8] == pytest.approx(again.vectors)
    assert len(read_vectors(tmp_path / "glove.txt.gz", maximum_words=3)) == 3


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_binary_files_of_word2vec(tmp_path, newline):
    """With a line end after each vector (the C program) and without (gensim)."""
    vectors = np.random.default_rng(1).normal(size=(3000, 64)).astype("<f4")
    words = [f"词{i}" for i in range(3000)]
    body = b"".join(word.encode() + b" " + struct.pack("<64f", *row) + newline for word, row in zip(words, vectors, strict=True))
    (tmp_path / "v.bin").write_bytes(b"3000 64\n" + body)
    found = read_vectors(tmp_path / "v.bin")
    assert found.words == words and np.array_equal(found.vectors, vectors)
    (tmp_path / "short.bin").write_bytes(b"3000 64\n" + body[:-500])
    with pytest.raises(DataError, match="ends after"):
        read_vectors(tmp_path / "short.bin")


@pytest.mark.parametrize("text", ["", "one\n", "2 3\na 1 2 3\n", "2 3\na 1 2 3\nb 1 2\n", "a 1 2 3\nb 1 x 3\n", "a 1 nan 3\n", "2 0\n"])
def test_damaged_files_of_vectors(tmp_path, text):
    (tmp_path / "v.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        read_vectors(tmp_path / "v.txt")


def test_rows_for_a_models_embeddings():
    vectors = small()
    tokens = ["king", "Ġqueen", "▁man", "##man", "<|end|>", "é²ģçıŃ", "King"]
    rows, found = initial_rows(vectors, tokens, 8, seed=3)
    assert found.tolist() == [True, True, True, False, False, True, True]
    assert rows.shape == (7, 8) and rows.dtype == np.float32
    scale = rows[0, :5] / vectors["king"]
    assert scale == pytest.approx(np.full(5, scale[0]), rel=1e-4) and not rows[0, 5:].any()
    assert np.array_equal(rows[5, :5] / scale[0], rows[5, :5] / scale[0]) and rows[5, :5] == pytest.approx(vectors["鲁班"] * scale[0], rel=1e-4)
    assert np.array_equal(rows, initial_rows(vectors, tokens, 8, seed=3)[0]) and not np.array_equal(rows[3], initial_rows(vectors, tokens, 8, seed=4)[0][3])
    none, missing = initial_rows(vectors, ["<a>", "<b>"], 4, seed=0)
    assert not missing.any() and none.std() < 0.1


def test_fewer_dimensions_keep_the_most_of_the_vectors():
    """The principal subspace: no projection to as many dimensions keeps inner products better (Eckart and Young)."""
    matrix = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32) * np.linspace(3, 0.1, 10)
    kept = resized(matrix, 4)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert np.linalg.norm(matrix @ matrix.T - kept @ kept.T) == pytest.approx(np.sqrt((values[4:] ** 4).sum()), rel=1e-4)


def test_pairs_are_read_as_they_come(tmp_path):
    (tmp_path / "p.tsv").write_text("word1\tword2\tscore\nKing\tQueen\t8.5\n老虎\t猫\t7\n", encoding="utf-8")
    assert read_pairs(tmp_path / "p.tsv", True) == [("king", "queen", 8.5), ("老虎", "猫", 7.0)]
    (tmp_path / "p.csv").write_text("a,b,1\nc,d\n", encoding="utf-8")
    with pytest.raises(DataError, match=":2"):
        read_pairs(tmp_path / "p.csv", True)
