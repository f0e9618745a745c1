"""Every refusal of the API, too, can be said in Chinese."""

from __future__ import annotations

import ast
import json
from importlib import resources

import pytest

from luban.foundation.messages import set_language
from luban.serving.errors import ApiError


def templates() -> set[str]:
    found = set()
    for file in resources.files("luban.serving").iterdir():
        if file.name.endswith(".py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError":
                    found |= {part.value for part in ast.walk(node.args[1]) if isinstance(part, ast.Constant)}
    return found


def test_every_refusal_has_its_chinese():
    chinese = json.loads(resources.files("luban.serving").joinpath("zh.json").read_text(encoding="utf-8"))
    assert len(templates()) > 30 and templates() <= set(chinese)


@pytest.mark.parametrize(("language", "says"), [("en", "tools is not supported"), ("zh", "不支持 tools")])
def test_a_refusal_speaks_the_servers_language(language, says):
    set_language(language)
    assert says in ApiError(400, "{param} is not supported by this server", param="tools").body()["error"]["message"]
