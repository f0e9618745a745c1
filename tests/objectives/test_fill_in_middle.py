"""Fill in the middle: the parts give the text back, orders and shares are those asked for, and plain text stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from text_lab import open_objective, rows_of, same, texts, tokenizer_of_style

from luban.inference.filling import MIDDLE_TOKENS, middle_prompt
from luban.objectives.fill_in_middle import GROWTH
from luban.tokens.noising import Noise


@pytest.fixture(scope="module")
def model_of_middles(tmp_path_factory):
    return open_objective(tmp_path_factory.mktemp("middle"), "plain", "llama", name="fill_in_middle", documents=[text[:300] for text in texts()], length=128)


def parts_of(piece: list[int], tokenizer) -> tuple[str, list[int], list[int], list[int]]:
    """Order and the three parts of a piece without its ends."""
    before, after, middle = (tokenizer.special_ids[token] for token in MIDDLE_TOKENS)
    assert piece[0] == before and piece.count(after) == piece.count(middle) == 1
    cut = piece.index(middle)
    if piece[1] == after and piece.index(after) == 1:
        # Suffix first: prefix and middle follow each other, and nothing tells where one ends.
        return "suffix_prefix_middle", piece[cut + 1 :], [], piece[2:cut]
    place = piece.index(after)
    return "prefix_suffix_middle", piece[1:place], piece[cut + 1 :], piece[place + 1 : cut]


def test_the_parts_give_the_text_back(model_of_middles):
    objective, loaders, request = model_of_middles
    tokenizer = request.tokenizer
    marker, end = tokenizer.special_ids[MIDDLE_TOKENS[0]], tokenizer.end_of_text_id
    orders, cut, plain = [], 0, 0
    known = [tokenizer.decode(tokenizer.encode(text[:300])) for text in texts()]
    for batch in [loaders.train.step(index) for index in range(loaders.train.epoch_steps)]:
        for row, pieces in enumerate(rows_of(batch)):
            assert batch.weights[row].sum() == sum(len(places) - 1 for places in pieces)
            for places in pieces:
                piece = batch.inputs[row, places].tolist()
                assert torch.equal(batch.targets[row, places[:-1]], batch.inputs[row, places[1:]])  # all is scored
                body = [index for index in piece if index != end]
                if marker not in piece:
                    plain += 1
                    text = tokenizer.decode(body)
                else:
                    cut += 1
                    assert piece[-1] == end
                    order, prefix, middle, suffix = parts_of(body, tokenizer)
                    orders.append(order)
                    text = tokenizer.decode(prefix) + tokenizer.decode(middle) + tokenizer.decode(suffix)
                assert "\ufffd" in text or any(text in whole for whole in known)
    assert abs(cut / (cut + plain) - 0.5) < 4 * 0.5 / (cut + plain) ** 0.5
    assert abs(orders.count("prefix_suffix_middle") / cut - 0.5) < 4 * 0.5 / cut**0.5


@pytest.mark.parametrize("order", ["prefix_suffix_middle", "suffix_prefix_middle"])
def test_one_order(tmp_path, order):
    objective, loaders, request = open_objective(tmp_path, "plain", "llama", name="fill_in_middle", order=order, share=1.0)
    assert objective.head.settings["order"] == order
    begin, end = objective.begin_id, objective.end_id
    ids = request.tokenizer.encode("to be, or not to be: that is the question")
    moved = objective.moved(np.array([begin, *ids, end]), Noise(3)).tolist()
    assert moved[0] == begin and moved[-1] == end and parts_of(moved[1:-1], request.tokenizer)[0] == order


def test_cuts_are_anywhere_between_characters(model_of_middles):
    objective, _, request = model_of_middles
    tokenizer = request.tokenizer
    text = "the sword of the 明月 king"
    ids = tokenizer.encode(text)
    cuts, inside = set(), 0
    boundaries = {len(tokenizer.decode(ids[:place])) for place in range(len(ids) + 1)}
    for seed in range(600):
        prefix, middle, suffix = objective.parts(ids, Noise(seed))
        texts_of_parts = [tokenizer.decode(part) for part in (prefix, middle, suffix)]
        assert "".join(texts_of_parts) == text and len(prefix) + len(middle) + len(suffix) <= len(ids) + GROWTH
        assert [tokenizer.encode(part) for part in texts_of_parts] == [prefix, middle, suffix]
        cuts |= {len(texts_of_parts[0]), len(texts_of_parts[0]) + len(texts_of_parts[1])}
        inside += len(texts_of_parts[0]) not in boundaries
    assert cuts == set(range(len(text) + 1)) and inside > 100


def test_tokens_that_are_no_text_are_cut_between(model_of_middles):
    objective, _, request = model_of_middles
    ids = request.tokenizer.encode("é")[1:] or request.tokenizer.encode("龘")[1:]  # begins inside a character
    assert request.tokenizer.encode(request.tokenizer.decode(ids)) != ids
    for seed in range(20):
        assert sum(objective.parts(ids, Noise(seed)), []) == ids


def test_markers_are_added_once_and_are_no_text(model_of_middles):
    _, _, request = model_of_middles
    tokenizer = request.tokenizer
    assert tokenizer.vocabulary_size == tokenizer_of_style("plain").vocabulary_size + 3
    objective = model_of_middles[0]
    assert objective.adapt_tokenizer(tokenizer) is tokenizer
    assert not set(tokenizer.encode("<|fim_middle|>")) & set(tokenizer.special_ids.values())


def test_the_prompt_is_what_training_shows():
    class Three:
        special_ids = dict(zip(MIDDLE_TOKENS, (1, 2, 3), strict=True))

    assert middle_prompt(Three(), [10], [20], "prefix_suffix_middle") == [1, 10, 2, 20, 3]
    assert middle_prompt(Three(), [10], [20], "suffix_prefix_middle") == [1, 2, 20, 3, 10]


def test_position_is_all_there_is(model_of_middles):
    _, loaders, _ = model_of_middles
    forward = [loaders.train.step(index) for index in range(3)]
    assert all(same(loaders.train.step(index), forward[index]) for index in (1, 2, 0))
