"""Each format as people write it, in each kind of file; bad rows named and kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.examples.conversations import Conversation, read_conversations, show, split_by_content
from luban.foundation.errors import ConfigError, DataError

USER, ANSWER = "写一首诗", "白日依山尽"
PLAIN = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {}}}]

FORMATS = {
    "messages": ({"messages": PLAIN}, "messages"),
    "messages under conversations": ({"conversations": PLAIN}, "messages"),
    "sharegpt": ({"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]}, "sharegpt"),
    "alpaca": ({"instruction": USER, "input": "", "output": ANSWER}, "alpaca"),
    "alpaca without input": ({"instruction": USER, "output": ANSWER}, "alpaca"),
    "prompt and completion": ({"prompt": USER, "completion": ANSWER}, "pairs"),
    "prompt and response": ({"prompt": USER, "response": ANSWER}, "pairs"),
    "question and answer": ({"Question": USER, "Answer": ANSWER}, "pairs"),
    "input and output": ({"input": USER, "output": ANSWER}, "pairs"),
    "Chinese columns": ({"问题": USER, "答案": ANSWER}, "pairs"),
    "conversational pair": ({"prompt": PLAIN[:1], "completion": PLAIN[1:]}, "pairs"),
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_recognised(tmp_path, name):
    row, form = FORMATS[name]
    found = read_conversations([write(tmp_path / "a.jsonl", [row, row])])
    assert [item.messages for item in found.conversations] == [PLAIN, PLAIN]
    assert (found.format, found.bad, found.files) == (form, [], ["a.jsonl"])
    assert found.conversations[1].source == f"{tmp_path / 'a.jsonl'}:2"


def test_alpaca_joins_input_and_tells_history_and_system():
    row = {"instruction": "Translate", "input": "天", "output": "sky", "system": "Be brief.", "history": [["hi", "hello"], ["ok", "yes"]]}
    (conversation,) = read_conversations([row]).conversations
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "ok"}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Translate\n天"}, {"role": "assistant", "content": "sky"},
    ]  # fmt: skip


def test_sharegpt_with_system_tools_calls_and_observations():
    row = {
        "system": "你是助手",
        "tools": json.dumps([TOOLS[0]["function"]], ensure_ascii=False),
        "conversations": [
            {"from": "human", "value": "天气?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
            {"from": "observation", "value": '{"sky": "clear"}'},
            {"from": "gpt", "value": "晴"},
        ],
    }
    (conversation,) = read_conversations([row]).conversations
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[2]["tool_calls"] == [CALL] and conversation.messages[2]["content"] == "" and conversation.tools == TOOLS


def test_openai_messages_with_tools_and_weights():
    row = {
        "tools": TOOLS,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "天气?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}],
            },
            {"role": "tool", "content": "clear", "tool_call_id": "c1"},
            {"role": "assistant", "content": "晴", "weight": 0.5},
        ],
    }
    (conversation,) = read_conversations([row]).conversations
    assert conversation.messages[2]["tool_calls"] == [{**CALL, "id": "c1"}]
    assert conversation.messages[0]["role"] == "system" and conversation.messages[-1]["weight"] == 0.5
    assert conversation.messages[3]["tool_call_id"] == "c1" and conversation.tools == TOOLS


def test_only_the_completion_of_a_conversational_pair_is_learned():
    row = {"prompt": [*PLAIN, {"role": "user", "content": "more"}], "completion": "再见"}
    (conversation,) = read_conversations([row]).conversations
    assert [message.get("weight", 1) for message in conversation.messages] == [1, 0, 1, 1] and conversation.messages[-1][
        "content"
    ] == "再见"


def test_every_kind_of_file(tmp_path):
    rows = [{"question": f"问 {index}", "answer": f'line\nbreak, "quoted" {index}'} for index in range(3)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ["question", "answer"])
    table.writeheader()
    table.writerows(rows)
    (tmp_path / "c.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    (tmp_path / "d.tsv").write_text("question\tanswer\n" + "".join(f"q{i}\ta{i}\n" for i in range(3)), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "g.csv.zst").write_bytes(zstandard.compress((tmp_path / "c.csv").read_bytes()))
    expected = [[row["question"], row["answer"]] for row in rows]
    for file in sorted(tmp_path.iterdir()):
        found = read_conversations([file])
        contents = [[message["content"] for message in item.messages] for item in found.conversations]
        assert contents == ([[f"q{i}", f"a{i}"] for i in range(3)] if file.suffix == ".tsv" else expected), file
        assert found.bad == []
    assert len(read_conversations(tmp_path).conversations) == 21  # a folder


def test_lists_and_frames():
    rows = [{"prompt": "a", "completion": "b", "system": None}, {"prompt": "c", "completion": "d", "system": "s"}]
    for table in (rows, pandas.DataFrame(rows), [Conversation(PLAIN, None), *rows]):
        found = read_conversations(table)
        assert found.conversations[-1].messages == [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
        assert len(found.conversations[-2].messages) == 2  # None (NaN in a frame) is no system message


def test_a_mapping_overrides_what_is_recognised():
    row = {"客户": "在吗", "客服": "在的", "question": "x", "answer": "y"}
    found = read_conversations([row], {"prompt": "客户", "answer": "客服"})
    assert [message["content"] for message in found.conversations[0].messages] == ["在吗", "在的"]
    row = {"log": [{"who": "客户", "says": "在吗"}, {"who": "坐席", "says": "在的"}]}
    found = read_conversations([row], {"messages": "log", "role": "who", "content": "says", "roles": {"客户": "user", "坐席": "assistant"}})
    assert [message["role"] for message in found.conversations[0].messages] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="did you mean prompt"):
        read_conversations([row], {"promt": "a"})
    with pytest.raises(ConfigError, match="neither"):
        read_conversations([row], {"prompt": "a"})


BAD = [
    ("{not json", "not valid JSON"),
    ('{"messages": []}', "no conversation is recognised"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', "nobody answers"),
    ('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "  "}]}', "answer is empty"),
    ('{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]}', "question is empty"),
    ('{"messages": [{"role": "wizard", "content": "hi"}]}', "unknown role 'wizard'"),
    ('{"messages": [{"role": "user", "content": "hi"}, {"content": "x"}]}', "without 'role'"),
    ('{"conversations": [{"from": "human", "value": "hi"}, {"from": "function_call", "value": "oops"}]}', "function_call is no JSON"),
    ('{"instruction": "a", "output": ""}', "answer is empty"),
    ('{"instruction": "a", "output": "b", "history": [["x"]]}', "history"),
    ('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", "weight": -1}]}', "weight"),
    ('{"title": "a", "text": "b"}', "columns: title, text"),
    (
        '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}], "chosen": {}, "rejected": {}}',
        "preference pair",
    ),
    ('{"chosen": "a", "rejected": "b"}', "preference pair"),
    ('{"prompt": "a", "completion": "b", "tools": "["}', "tools is no JSON"),
    ("[1, 2]", "not an object"),
]


def test_bad_rows_are_named_with_their_line_and_reason_and_kept(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "\n".join([json.dumps({"messages": PLAIN}), *(line for line, _ in BAD), "", json.dumps(FORMATS["alpaca"][0])]), encoding="utf-8"
    )
    found = read_conversations([path])
    assert len(found.conversations) == 2 and found.format == "messages, alpaca"
    assert [bad.line for bad in found.bad] == list(range(2, len(BAD) + 2)) and {bad.file for bad in found.bad} == {str(path)}
    for bad, (line, reason) in zip(found.bad, BAD, strict=True):
        assert reason in bad.reason, (line, bad.reason)
        assert bad.text


def test_nothing_usable_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="mapping: {prompt: title") as error:
        read_conversations([write(tmp_path / "a.jsonl", [{"title": "a", "text": "b"}])])
    assert "a.jsonl:1" in str(error.value) and "columns: title, text" in str(error.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no conversation"):
        read_conversations([tmp_path / "empty.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        read_conversations([tmp_path / "missing.jsonl"])


def test_what_was_recognised_is_shown(tmp_path, capsys):
    lines = [json.dumps({"question": "a", "answer": "b", "label": True, "topic": "x"}), "oops"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = read_conversations([tmp_path / "a.jsonl"])
    assert found.unused == ["label", "topic"]
    show(found)
    said = capsys.readouterr().err
    for part in ("1 conversations in a.jsonl (format: pairs)", "prompt", "question", "a.jsonl:2: not valid JSON", "label is not used"):
        assert part in said


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "messages",
        "conversations",
        "instruction",
        "output",
        "prompt",
        "completion",
        "system",
        "tools",
        "history",
        "input",
        "from",
        "value",
        "role",
        "content",
        "tool_calls",
        "weight",
    ]
)
rows = st.dictionaries(
    keys,
    json_values
    | st.lists(
        st.dictionaries(keys, json_values | st.sampled_from(["user", "assistant", "human", "gpt", "function_call"]), max_size=4), max_size=3
    ),
    max_size=5,
)


@given(st.lists(rows, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_row_is_lost_and_none_crashes(given_rows):
    try:
        found = read_conversations([{"messages": PLAIN}, *given_rows])
    except DataError:
        return
    assert len(found.conversations) + len(found.bad) == len(given_rows) + 1
    for conversation in found.conversations:
        assert any(message["role"] == "assistant" for message in conversation.messages)


def test_the_split_follows_the_question_and_growth_moves_nothing():
    def conversation(question, answer):
        return Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    some = [conversation(f"q{index % 400}", f"a{index}") for index in range(800)]
    train, held = split_by_content(some, 0.1)
    assert 40 < len(held) < 120 and len(train) + len(held) == 800
    asked = [{item.messages[0]["content"] for item in part} for part in (train, held)]
    assert not asked[0] & asked[1]
    more_train, more_held = split_by_content([conversation("new", "x"), *some], 0.1)
    assert [item for item in more_held if item.messages[0]["content"] != "new"] == held
    assert split_by_content(some, 0.0) == (some, [])
    two = [conversation("a", "1"), conversation("b", "2")]
    assert all(len(part) == 1 for share in (0.001, 0.999) for part in split_by_content(two, share))
