"""Dialogues as they are published: CrossWOZ, ChatterBot's YAML, DialogSum, lists of turns, text with names; slices of them; hostile files."""

from __future__ import annotations

import gzip
import json

import pandas
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import luban
from luban.corpus.documents import read_documents
from luban.corpus.readers import BadLine
from luban.examples.conversations import Conversation, read_conversations, show, split_by_content
from luban.examples.dialogues import is_dialogue_text, speaker_of
from luban.examples.reading import read_examples
from luban.examples.supervised import supervised_examples
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.pipeline.show import show as show_path

TURNS = ["你好", "你好，有什么可以帮你？", "推荐一家餐馆", "讲礼驴肉馆"]
ALTERNATE = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, TURNS, strict=True)]
DIALOGSUM = "#Person1#: Hello, how are you?\n#Person2#: Not well: I cough.\n#Person1#: Since when?\n#Person2#: Since 3:30."


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def contents(found):
    return [[message["content"] for message in item.messages] for item in found.conversations]


LISTS = {
    "dialog": {"dialog": TURNS},
    "dialogue": {"dialogue": TURNS},
    "speaker and text": {"turns": [{"speaker": "AB"[place % 2], "text": text} for place, text in enumerate(TURNS)]},
    "a user and a system": {"turns": [{"speaker": ["USER", "SYSTEM"][place % 2], "utterance": text} for place, text in enumerate(TURNS)]},
    "no speaker (MultiWOZ)": {"log": [{"text": text, "metadata": {}} for text in TURNS]},
    "any column": {"id": 7, "record": [{"speaker": "AB"[place % 2], "text": text} for place, text in enumerate(TURNS)]},
    "lines": {"dialogue": "\n".join(f"{'AB'[place % 2]}：{text}" for place, text in enumerate(TURNS))},
    "lines with \\n written out": {"conversation": "\\n".join("甲乙"[place % 2] + f": {text}" for place, text in enumerate(TURNS))},
    "lines of any column": {"text": "\n".join(f"[Speaker {place % 2 + 1}]: {text}" for place, text in enumerate(TURNS))},
    "tags on one line": {"dialogue": " ".join(f"#Person{place % 2 + 1}#: {text}" for place, text in enumerate(TURNS))},
    "names in a list": {"dialog": [f"{'AB'[place % 2]}: {text}" for place, text in enumerate(TURNS)]},
    "JSON in a cell": {"dialog": json.dumps(TURNS)},
    "roles as others call them": {"messages": [{"role": ["usr", "sys"][place % 2], "content": text, "dialog_act": []} for place, text in enumerate(TURNS)]},
}


@pytest.mark.parametrize("name", LISTS)
def test_turns_become_user_and_assistant(tmp_path, name):
    found = read_conversations([written(tmp_path / "a.jsonl", json.dumps(LISTS[name], ensure_ascii=False) + "\n")])
    assert [item.messages for item in found.conversations] == [ALTERNATE] and not found.bad


def test_names_that_say_who_answers_decide_over_the_order():
    for first, second in (("Agent", "Customer"), ("客服", "客户"), ("assistant", "user")):
        (item,) = read_conversations([{"dialogue": f"{first}: 您好\n{second}: 在吗\n{first}: 在"}]).conversations
        assert [message["role"] for message in item.messages] == ["assistant", "user", "assistant"]


def test_a_speaker_who_goes_on_is_one_turn_and_more_than_two_alternate(capsys):
    rows = [
        {"turns": [{"speaker": "A", "text": "hi"}, {"speaker": "A", "text": "there"}, {"speaker": "B", "text": "hello"}]},
        {"dialogue": "Amanda: a\nTom: b\nJerry: c\nAmanda: d\nand more"},
        {"dialog": ["a", "b", "c"]},
    ]
    found = read_conversations(rows)
    assert contents(found) == [["hi\nthere", "hello"], ["a", "b", "c", "d\nand more"], ["a", "b", "c"]]
    assert all([message["role"] for message in item.messages] == (["user", "assistant"] * 2)[: len(item.messages)] for item in found.conversations)
    assert found.counts == {"turns joined": 1, "many speakers": 1, "unanswered": 1}
    show(found)
    said = capsys.readouterr().err
    assert "1 turns of a speaker" in said and "more than two speakers" in said and "messages" in said


def test_crosswoz_is_keyed_by_identity(tmp_path):
    dialogues = {str(number): {"goal": [[1]], "messages": LISTS["roles as others call them"]["messages"]} for number in (11290, 11291)}
    dialogues["9"] = {"goal": [], "messages": [{"role": "usr", "content": "hi"}]}
    raw = json.dumps(dialogues, ensure_ascii=False, indent=2).encode()
    (tmp_path / "val.json.gz").write_bytes(gzip.compress(raw))
    found = read_conversations([tmp_path / "val.json.gz"])
    assert [item.messages for item in found.conversations] == [ALTERNATE] * 2
    assert found.conversations[0].source == f"{tmp_path / 'val.json.gz'}:1 (11290)" and found.format == "messages"
    (bad,) = found.bad
    assert bad.reason.startswith("9: nobody answers") and bad.line == 1


def test_chatterbot_yaml_keeps_texts_texts_and_names_the_line_of_what_is_wrong(tmp_path):
    corpus = "categories:\n- trivia\nconversations:\n- - Is it so?\n  - Yes\n- In what year?\n- - Which year?\n  - 1963\n- - alone\n- - a\n  - [b]\n- - ''\n  - x\n"
    found = read_conversations([written(tmp_path / "trivia.yml", corpus)])
    assert contents(found) == [["Is it so?", "Yes"], ["Which year?", "1963"]]
    assert [item.source for item in found.conversations] == [f"{tmp_path / 'trivia.yml'}:{line}" for line in (4, 7)]
    assert [(bad.line, bad.reason) for bad in found.bad] == [
        (6, "a text, not an object or a list of turns"),
        (9, "there is only one turn: nobody answers"),
        (10, "a list of other things than turns, not an object or a list of turns"),
        (12, "turn 1 is empty"),
    ]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=4), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_yaml_says_what_pyyaml_says(tmp_path_factory, talks):
    text = yaml.safe_dump({"conversations": talks}, allow_unicode=True)
    found = read_conversations([written(tmp_path_factory.mktemp("y") / "a.yaml", text)])
    expected = [[turn.strip() for turn in talk] for talk in yaml.safe_load(text)["conversations"]]
    assert sum(len(talk) for talk in contents(found)) + found.counts.get("turns joined", 0) == sum(map(len, expected))
    if not any(speaker_of(turn) for talk in talks for turn in talk):
        assert contents(found) == expected


def test_broken_and_hostile_yaml(tmp_path):
    before = "conversations:\n- - hi\n  - hello\n"
    for fault, reason in (("- - a\n  - 'b\n", "not valid YAML"), ("- - a\n\t- b\n", "not valid YAML"), ("- &x [a, b]\n- *x\n", "alias"), ("- " + "[" * 5000, "nested too deeply"), ("- {[a]: b}\n", "key")):
        found = read_conversations([written(tmp_path / "a.yml", before + fault)])
        assert contents(found)[0] == ["hi", "hello"] and len(found.conversations) <= 2, fault
        assert len(found.bad) == 1 and reason in found.bad[0].reason and found.bad[0].line >= 3, (fault, found.bad)
    for nothing in ("", "conversations:\n", "a: b\n", "- 1\n", "conversations: {a: *b}"):
        with pytest.raises(DataError):
            read_conversations([written(tmp_path / "a.yml", nothing)])


def test_dialogsum_is_turns_and_summaries(tmp_path):
    rows = [{"fname": f"d{number}", "dialogue": DIALOGSUM + f'\n#Person1#: "{number}", I\'d say.', "summary": f"A cough {number}."} for number in range(8)]
    written(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows)))
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        pandas.DataFrame(rows).to_csv(tmp_path / f"d.{ending}", sep=separator, index=False)
    for ending in ("jsonl", "csv", "tsv"):
        found = read_conversations([tmp_path / f"d.{ending}"])
        assert contents(found)[3] == ["Hello, how are you?", "Not well: I cough.", "Since when?", "Since 3:30.", "\"3\", I'd say."], ending
        assert found.format == "dialogue" and found.mapping == {"format": "dialogue", "messages": "dialogue"} and not found.bad
        pairs = read_examples([tmp_path / f"d.{ending}"], "text_pairs")
        assert pairs.mapping == {"input": "dialogue", "output": "summary"} and len(pairs.examples) == 8 and pairs.examples[3].input.count("\n") == 4


def test_text_files_with_names_and_no_other_text(tmp_path):
    talk = "Amanda: I baked cookies. Do you want some?\nJerry: Sure!\n\nTom: See http://x.y at 3:30\nit is late\nAnn: ok\nTom: Bye\n"
    found = read_conversations([written(tmp_path / "chat.txt", talk)])
    assert contents(found) == [["I baked cookies. Do you want some?", "Sure!"], ["See http://x.y at 3:30\nit is late", "ok", "Bye"]]
    assert [item.source.rpartition(":")[2] for item in found.conversations] == ["1", "4"]
    for other in ("Name: x\nAge: 3\nCity: y\n\n" * 9, "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 9, "One sentence.\nAnother: a long one.\n" * 9):
        with pytest.raises(DataError, match="not records"):
            read_conversations([written(tmp_path / "play.txt", other)])
    form = "Passage: a king\nQuestion: who?\nAnswer: him"
    assert not is_dialogue_text(form) and not is_dialogue_text(7) and is_dialogue_text("A: a\nB: b\nA: c\nB: d")
    with pytest.raises(DataError, match="no conversation"):
        read_conversations([{"query": form}])
    found = read_conversations([written(tmp_path / "plain.txt", "hi\nhello\n\nso?\nyes\n")], {"messages": "dialogue", "format": "turns"})
    assert contents(found) == [["hi", "hello"], ["so?", "yes"]]


def test_questions_alone_are_no_conversation_unless_it_is_said():
    row = {"question_id": 81, "turns": ["Write a post.", "Rewrite it."]}
    with pytest.raises(DataError, match="no conversation is recognised"):
        read_conversations([row])
    assert contents(read_conversations([row], {"messages": "turns"})) == [row["turns"]]


def test_the_mapping_overrides():
    row = {"dialogue": "Bob: hi\nAlice: hello", "other": "x"}
    roles = {"Alice": "user", "Bob": "assistant"}
    (item,) = read_conversations([row], {"messages": "dialogue", "roles": roles}).conversations
    assert [message["role"] for message in item.messages] == ["assistant", "user"]
    with pytest.raises(DataError, match="unknown speaker 'Bob'"):
        read_conversations([row], {"messages": "dialogue", "roles": {"Alice": "user"}})
    log = {"log": [{"who": "P1", "says": "a"}, {"who": "P2", "says": "b"}], "dialogue": TURNS}
    assert contents(read_conversations([log], {"messages": "log", "role": "who", "content": "says"})) == [["a", "b"]]
    assert contents(read_conversations([{"m": [{"role": "P1", "content": "a"}, {"role": "P2", "content": "b"}]}], {"messages": "m", "format": "turns"})) == [["a", "b"]]
    with pytest.raises(ConfigError, match="did you mean dialogue"):
        read_conversations([row], {"messages": "dialogue", "format": "dialoge"})


BAD = [
    ({"dialog": ["a", ""]}, "turn 2 is empty"),
    ({"dialog": ["a"]}, "only one turn"),
    ({"dialog": ["a", 5]}, "turn 1 is a text among objects"),
    ({"dialog": [{"speaker": "A", "text": "a"}, {"speaker": "A", "text": "b"}]}, "only one speaker"),
    ({"dialog": [{"speaker": "A", "text": "a"}, {"speaker": None, "text": "b"}]}, "turn 2 has no 'speaker'"),
    ({"dialog": [{"speaker": "A", "text": "a"}, {"speaker": "B"}]}, "turn 2 has no 'text'"),
    ({"dialog": [{"speaker": "A", "text": "a"}, {"speaker": "B", "text": ["b"]}]}, "is a list"),
    ({"dialogue": "A: a\nA: b"}, "only one speaker"),
    ({"dialogue": "#Person1#: a\n#Person2#:"}, "turn 2 is empty"),
    ({"dialogue": "no name here"}, "no conversation is recognised"),
    ({"dialogue": '["a", '}, "no list of turns"),
    ({"dialogue": "[" * 100_000}, "no conversation is recognised"),
]


def test_wrong_rows_are_named_and_counted(tmp_path):
    path = written(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row, _ in [({"dialog": TURNS}, ""), *BAD]))
    found = read_conversations([path])
    assert len(found.conversations) == 1 and [bad.line for bad in found.bad] == list(range(2, len(BAD) + 2)) and not found.counts
    for bad, (row, reason) in zip(found.bad, BAD, strict=True):
        assert reason in bad.reason, (row, bad.reason)


def test_json_in_other_shapes(tmp_path):
    for value in ([TURNS, TURNS], [ALTERNATE, ALTERNATE], {"a": TURNS, "b": TURNS}, {"conversations": [TURNS, TURNS]}, {"data": [{"dialog": TURNS}] * 2}, [{"dialog": TURNS}] * 2):
        found = read_conversations([written(tmp_path / "a.json", value)])
        assert [item.messages for item in found.conversations] == [ALTERNATE] * 2, value
    assert [item.messages for item in read_conversations([written(tmp_path / "one.json", {"id": 1, "messages": ALTERNATE})]).conversations] == [ALTERNATE]
    assert [item.messages for item in read_conversations([written(tmp_path / "l.jsonl", f"{json.dumps(TURNS)}\n[1, 2]\n[,]\n")]).conversations] == [ALTERNATE]
    found = read_conversations([written(tmp_path / "cut.json", json.dumps({"messages": ALTERNATE}, indent=1) + '\n{"messages": [')])
    assert len(found.conversations) == 1 and "not valid JSON" in found.bad[0].reason
    found = read_conversations([written(tmp_path / "mixed.json", [TURNS, [], 7, None, "x", {}])])
    assert len(found.conversations) == 1 and len(found.bad) == 5


def test_a_folder_is_read_past_what_is_none(tmp_path):
    written(tmp_path / "a.yml", {"conversations": [TURNS]})
    written(tmp_path / "SOURCE.md", "# where it is from\n")
    found = read_conversations([tmp_path])
    assert len(found.conversations) == 1 and [(bad.line, "markdown" in bad.reason) for bad in found.bad] == [(0, True)]
    show(found)


def test_slices_are_drawn_by_content(tmp_path):
    rows = [{"dialog": [f"question {number}", f"answer {number}"]} for number in range(50)]
    one, other = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), written(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows[::-1])))

    def asked(path):
        return {item.messages[0]["content"] for item in read_conversations([path]).conversations}

    few, more = asked(f"{one}#5"), asked(f"{one}#20")
    assert len(few) == 5 and few < more and few == asked(f"{other}#5") and few != asked(f"{one}#5@7") and len(asked(f"{one}#10%")) == 5
    found = read_conversations([f"{one}#5", f"{other}#50%"])
    assert len(found.conversations) == 30 and found.counts == {"sliced away": 70}
    assert len(read_conversations([one, one]).conversations) == 50  # a file that is named twice is read once, as ever
    with pytest.raises(ConfigError, match="#8/label needs examples with labels"):
        read_conversations([f"{one}#8/label"])
    with pytest.raises(ConfigError, match="is no slice"):
        read_conversations([f"{one}#some"])
    train, held = split_by_content(found.conversations, 0.2)
    assert len(train) + len(held) == 30


def test_what_the_template_refuses_keeps_its_place(bpe):
    bad: list[BadLine] = []
    strange = Conversation([{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}], None, "/a:b/val.json:12 (x:2)")
    try:
        supervised_examples([Conversation(ALTERNATE, None, "a.jsonl:1"), strange], bpe, bad)
    except LubanError:
        pytest.fail("one that can be encoded is enough")
    assert [(line.file, line.line, line.reason[:4]) for line in bad] == [("/a:b/val.json", 12, "x:2:")]


def test_gather_and_show_read_them_too(tmp_path, capsys):
    path = written(tmp_path / "a.yml", {"conversations": [["hi", "hello"], ["so?", "yes"]]})
    stages = {"texts": {"kind": "gather", "data": f"{path}#1", "task": "conversation", "validation_share": 0}}
    (artifact,) = luban.run({"name": "g", "stages": stages}, out=tmp_path / "run")
    assert {document.text for document in read_documents(artifact.path, "train")} in ({"hi", "hello"}, {"so?", "yes"})
    capsys.readouterr()
    show_path(path)
    said = capsys.readouterr().err
    assert "2 conversations in a.yml (format: turns)" in said and "user: hi" in said
    row = {"dialogue": "A: a\nB: b"}
    show_path(written(tmp_path / "text.jsonl", "\n".join(map(json.dumps, [row] + [{"text": f"Running text {number}."} for number in range(9)]))))
    assert "conversations in" not in capsys.readouterr().err
