"""Chat templates: Jinja text that turns messages into a prompt, rendered in a sandbox exactly as transformers does.

A template comes with a model that somebody sent, so it runs in jinja2's ImmutableSandboxedEnvironment and
sees only plain data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luban.foundation.errors import DataError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Qwen2.5's format (ChatML; tools after Hermes), without its default system prompt: a small model
# should not spend a quarter of its context on a sentence that never changes.
CHATML = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- (messages[0]['content'] or '') + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments ' }}
    {{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages and messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + (messages[0]['content'] or '') + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' and loop.first %}
    {%- elif message['role'] == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + (message['content'] or '') + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
        {%- for call in message['tool_calls'] or [] %}
            {%- set function = call['function'] if call['function'] else call %}
            {%- if message['content'] or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {{- '<tool_call>\n{"name": ' + (function['name'] | tojson) + ', "arguments": ' }}
            {{- function['arguments'] if function['arguments'] is string else function['arguments'] | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".lstrip("\n")

# Templates that print today's date would give other training examples tomorrow: examples are rendered on this day.
FIXED_DAY = datetime(2025, 1, 1)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for transformers; here it is only a pair of brackets."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


@lru_cache(maxsize=16)
def compile_template(template: str, clock: Callable[[], datetime] = datetime.now) -> jinja2.Template:
    """The template, ready to render. DataError names the line where it is no Jinja."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            "the chat template is no valid Jinja: line {line}: {error}", "", "correct chat_template in tokenizer_config.json (or chat_template.jinja)",
            line=error.lineno, error=error.message,
        ) from None  # fmt: skip


def render(
    template: str,
    messages: list[dict],
    *,
    add_generation_prompt: bool,
    tools: list[dict] | None,
    specials: dict[str, str],
    clock: Callable[[], datetime] = datetime.now,
) -> str:
    """The text of a conversation. ``specials`` are the variables such as ``bos_token`` that templates may use.

    Raises DataError with the template's own words when it refuses the conversation (an order of roles, say).
    """
    try:
        return compile_template(template, clock).render(
            messages=[plain_message(message) for message in messages],
            tools=_plain(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **specials,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        roles = ", ".join(str(message.get("role", "?")) for message in messages)
        raise DataError(
            "the chat template refuses a conversation with the roles {roles}: {error}",
            "each model's template has its own rules for the order of roles, system messages and tools",
            "change the conversation, or choose another chat_template",
            roles=roles or "(none)", error=error,
        ) from None  # fmt: skip


def plain_message(message: dict) -> dict:
    """A message as templates expect it: plain data, parts of text joined, arguments of tool calls as objects.

    OpenAI's API carries the arguments as a JSON string, templates print them with ``tojson``; a string that holds
    an object becomes that object, as vLLM does.
    """
    message = _plain({key: value for key, value in message.items() if key != "weight"})
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        message["content"] = "".join(str(part.get("text", "")) for part in content)
    reasoning = next((message[key] for key in ("reasoning_content", "thinking", "reasoning") if message.get(key) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    for call in message.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except ValueError:
                continue  # not JSON: the template gets the text as it is
            if isinstance(arguments, dict):
                function["arguments"] = arguments
    return message


def _plain(value: Any) -> Any:
    """A copy made of JSON's own types, so that the sandbox holds nothing with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def strings_in(value: Any) -> Iterator[str]:
    """Every string inside plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of plain data with every string changed (keys excepted)."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
