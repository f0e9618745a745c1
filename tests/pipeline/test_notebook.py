"""Luban in a Jupyter kernel: verbs run, and what they say appears under the cell."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient
from tiny import write_text

CELLS = (
    "import luban",
    "corpus = luban.curate('text.txt', out='corpus', workers=1)",
    "tokens = luban.encode(corpus=corpus, tokenizer=luban.train_tokenizer(corpus, vocabulary_size=300, out='tokenizer'), out='tokens')",
    "shape = dict(layers=1, hidden_size=32, heads=2, head_dim=16, feed_forward_size=64, maximum_positions=64)\n"
    "model = luban.train(data=tokens, shape=shape, sequence_length=32, batch_tokens=64, length='3 steps', threads=1, out='model')",
    "luban.load(model.path).generate('the king')",
    "luban.train(data=tokens, lenght='3 steps')",
)


def test_a_notebook_runs_and_shows_what_happens(tmp_path):
    write_text(tmp_path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    NotebookClient(notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = ["".join(str(output.get("text", "")) for output in cell.outputs) for cell in notebook.cells]
    assert "for training" in shown[1]
    assert "step 3/3" in shown[3] and "loss" in shown[3]
    assert notebook.cells[4].outputs[0]["data"]["text/plain"][0] in "'\""  # a text that is drawn, as Python writes it
    assert notebook.cells[5].outputs[0]["ename"] == "ConfigError"
    assert "did you mean length" in notebook.cells[5].outputs[0]["evalue"]
