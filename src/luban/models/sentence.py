"""The files beside a model that sentence-transformers opens as an embedding model, read and written: modules.json and what it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_json
from luban.foundation.errors import DataError
from luban.models.heads import Head

MODULES, FACTS, LENGTHS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_POOLINGS = {"mean": "mean", "cls": "first", "lasttoken": "last"}  # their names of what Luban knows
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip


def sentence_head(folder: Path) -> Head | None:
    """The head of an embedding model that sentence-transformers wrote; None for a directory of another kind.

    What Luban has no module for (a dense layer on top, other poolings) stands in the settings ``pooling`` and ``unread_modules``; making
    vectors refuses it. Raises DataError where a file is damaged.
    """
    modules = _read(folder / MODULES)
    if not isinstance(modules, list):
        return None
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules if isinstance(module, dict)}
    if "Pooling" not in kinds:
        return None
    pooling = _read(folder / kinds["Pooling"] / "config.json") or {}
    facts = _read(folder / FACTS) or {}
    lengths = _read(folder / LENGTHS) or {}
    settings: dict[str, Any] = {"pooling": _pooling(pooling), "normalise": "Normalize" in kinds}
    if isinstance(lengths.get("max_seq_length"), int):
        settings["maximum_tokens"] = lengths["max_seq_length"]
    prompts = {name: text for name, text in (facts.get("prompts") or {}).items() if isinstance(text, str) and text}
    if prompts:
        settings["prompts"] = prompts
    if facts.get("default_prompt_name") in prompts:
        settings["default_prompt"] = facts["default_prompt_name"]
    if unread := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        settings["unread_modules"] = unread
    return Head("vector", "embedding", settings=settings)


def write_sentence_files(folder: Path, head: Head, width: int) -> None:
    """Beside a saved embedding model of ``width``: transformer, pooling and, if its vectors have length one, normalisation."""
    settings = head.settings
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if settings.get("normalise", True) else [])
    write_json(folder / MODULES, [{"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"} for index, (path, kind) in enumerate(steps)])
    for path, _ in steps[1:]:
        (folder / path).mkdir(exist_ok=True)
    chosen = next(name for name, own in _POOLINGS.items() if own == settings.get("pooling", "mean"))
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **{flag: name == chosen for flag, name in _FLAGS.items()}, "include_prompt": True})
    write_json(folder / LENGTHS, {"max_seq_length": settings.get("maximum_tokens"), "do_lower_case": False})
    write_json(folder / FACTS, {"prompts": dict(settings.get("prompts", {})), "default_prompt_name": settings.get("default_prompt"), "similarity_fn_name": "cosine"})


def _pooling(config: dict[str, Any]) -> str:
    """Luban's name of a pooling, or theirs where Luban has none such."""
    named = config.get("pooling_mode")
    modes = ([named] if isinstance(named, str) else list(named or [])) or [name for flag, name in _FLAGS.items() if config.get(flag)] or ["mean"]
    return _POOLINGS.get(modes[0], modes[0]) if len(modes) == 1 and config.get("include_prompt", True) else "+".join(modes)


def _read(file: Path) -> Any:
    """A JSON file's content; None where there is no such file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except ValueError as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
