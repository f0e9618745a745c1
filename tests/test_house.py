"""The shape of the house: imports go downwards only, files fit a head, heavy things are lazy, every message is translated."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "luban"
ROOMS = ["foundation", "models", "corpus", "tokenizer", "adapters", "inference", "tokens", "examples", "metrics", "objectives", "parallel", "training", "fitting", "evaluation", "explain", "compression", "export", "planning", "serving", "pipeline", "tuning", "board", "cli"]
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0]


def imported_modules(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            found.append((node.module, node.lineno))
    return found


def test_every_folder_is_a_known_room():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "recipes")}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != SOURCE and room_of(f) != "recipes"], ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_before_it(file):
    allowed = ROOMS[: ROOMS.index(room_of(file)) + 1]
    for module, line in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
        parts = module.split(".")
        if parts[0] == "luban" and len(parts) > 1:
            assert parts[1] in allowed, f"{file}:{line} imports {module}, which is above it"


def test_configs_import_nothing_heavy():
    for file in FILES:
        if file.name in ("config.py", "shape.py"):
            for module, line in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
                head = module.split(".")[0]
                assert head in ("luban", "pydantic", "pydantic_core") or head in sys.stdlib_module_names, f"{file}:{line} imports {module}"


def test_files_and_functions_fit_a_head():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        if room_of(file) == "recipes":
            continue
        assert text.count("\n") <= 500, f"{file} is longer than 500 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno <= 70, f"{file}:{node.lineno}: {node.name} is too long"


def test_only_the_environment_module_reads_the_environment():
    for file in FILES:
        if file.name == "environment.py" or room_of(file) == "recipes":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                raise AssertionError(f"{file}:{node.lineno} reads the environment")


def test_no_pickle_and_no_remote_code():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "cloudpickle"} & set(names), f"{file}:{node.lineno} imports a pickler"
            if isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
                raise AssertionError(f"{file}:{node.lineno}: torch.load reads pickles")


def test_help_imports_no_room_and_nothing_heavy():
    code = (
        "import sys; sys.argv=['luban','--help']\n"
        "from luban.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "rooms={m.split('.')[1] for m in sys.modules if m.startswith('luban.')}\n"
        "heavy={m for m in ('torch','numpy','pyarrow','tokenizers','transformers','pydantic') if m in sys.modules}\n"
        "print('ROOMS', sorted(rooms), 'HEAVY', sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "ROOMS ['cli', 'foundation'] HEAVY []" in out


# ------------------------------------------------------------------------------------------- messages in Chinese

SPEAKERS = {"t", "say", "warn", "heading", "progress", "track", "table"}
ERRORS = {"LubanError", "ConfigError", "DataError", "LockedError", "Interrupted"}


def texts_of(node: ast.AST) -> list[str]:
    """String constants an argument can become: a literal, or either side of a conditional."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return texts_of(node.body) + texts_of(node.orelse)
    return []


def spoken(file: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ERRORS or (isinstance(node.func, ast.Attribute) is False and name.endswith("Error") and name in ERRORS):
            arguments = node.args[:3]
        elif name in ("t", "say", "warn", "heading", "progress"):
            arguments = node.args[:1]
        elif name == "track":
            arguments = node.args[1:2]
        elif name in ("field", "config_field") and file.name in ("config.py", "shape.py", "recipe.py"):
            arguments = node.args[1:2] + [keyword.value for keyword in node.keywords if keyword.arg == "doc"]
        else:
            continue
        found += [(text, node.lineno) for argument in arguments for text in texts_of(argument)]
    return [(text, line) for text, line in found if any(letter.isalpha() for letter in text)]


def catalogue() -> dict[str, str]:
    merged: dict[str, str] = {}
    for file in SOURCE.glob("*/zh.json"):
        merged |= json.loads(file.read_text(encoding="utf-8"))
    return merged


def test_every_message_and_every_field_has_its_chinese():
    chinese = catalogue()
    missing = [f"{file.relative_to(SOURCE)}:{line}: {text}" for file in FILES if room_of(file) != "recipes" for text, line in spoken(file) if text not in chinese]
    assert not missing, "\n".join(missing)


def test_translations_keep_their_placeholders_and_are_chinese():
    from string import Formatter

    for english, chinese in catalogue().items():
        fields = {name for _, name, _, _ in Formatter().parse(english) if name is not None} if "{" in english else set()
        kept = {name for _, name, _, _ in Formatter().parse(chinese) if name is not None} if "{" in english else set()
        assert kept <= fields, f"{english!r} -> {chinese!r}"
