"""What a request may hold: OpenAI's fields, and vLLM's `top_k`, `min_p` and `repetition_penalty`.

A body is checked in three steps: it is JSON; fields that Luban does not have are either neutral (and dropped)
or refused by name; the rest is typed strictly. Nothing that would change the answer is ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luban.foundation.errors import nearest
from luban.serving.errors import ApiError, unsupported

# Fields that say who asks or how the answer is billed, and change nothing in it.
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")

# Fields of OpenAI's that Luban does not have, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
MAXIMUM_STOPS = 16
MAXIMUM_CHOICES = 128
MAXIMUM_ALTERNATIVES = 20

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenIds = list[int]
BodyType = TypeVar("BodyType", bound="Body")


class Body(BaseModel):
    """Base of every request body: closed and strictly typed."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None


class GenerationBody(Body):
    """The fields that both generating routes share. None means: the server's own default."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    stop: Any = None
    n: Annotated[int, Field(ge=1, le=MAXIMUM_CHOICES)] | None = None

    def stops(self) -> list[str] | None:
        """The stop strings as a list, or None if the field was left out."""
        if self.stop is None:
            return None
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise ApiError(400, "{param}: a string or a list of strings is needed", param="stop")
        if len(stops) > MAXIMUM_STOPS:
            raise ApiError(400, "{param}: at most {limit} strings are accepted", param="stop", limit=MAXIMUM_STOPS)
        return [stop for stop in stops if stop]


class CompletionBody(GenerationBody):
    prompt: Any = ""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAXIMUM_ALTERNATIVES)] | None = None

    def prompts(self) -> list[str | TokenIds]:
        """The prompts: texts or token ids. One string, one list of ids, or a list of either."""
        prompt = "" if self.prompt is None else self.prompt
        if isinstance(prompt, str) or _is_ids(prompt):
            return [prompt]
        if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
            return prompt
        if isinstance(prompt, list) and prompt and all(_is_ids(part) for part in prompt):
            return prompt
        raise ApiError(400, "{param}: a string, a list of strings, a list of token ids or a list of such lists is needed", param="prompt")


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAXIMUM_ALTERNATIVES)] | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as plain texts with roles, for the chat template. `developer` is `system` by its newer name."""
        return [_plain(message, index) for index, message in enumerate(self.messages)]

    def maximum_tokens(self) -> int | None:
        """`max_completion_tokens`, or `max_tokens` by its older name."""
        if self.max_tokens is not None and self.max_completion_tokens is not None and self.max_tokens != self.max_completion_tokens:
            raise ApiError(400, "{param} and max_completion_tokens are one field: give one of them", param="max_tokens")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeBody(Body):
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True


class DetokenizeBody(Body):
    tokens: TokenIds


class PredictBody(Body):
    """What /v1/predict takes: one item or a list of them, each a text or its named parts."""

    input: Any
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top: Annotated[int, Field(ge=1, le=1000)] | None = None  # fills and next words that are shown


class EmbeddingBody(Body):
    """OpenAI's request for embeddings, and the name of one of the model's own prompts ("query", "document")."""

    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    prompt: str | None = None

    def texts(self) -> list[str | TokenIds]:
        """The texts, or the token ids of texts: one, or a list of either. An empty text is refused, as OpenAI does."""
        given = [self.input] if isinstance(self.input, str) or _is_ids(self.input) else self.input
        if not isinstance(given, list) or not given or not (all(isinstance(part, str) for part in given) or all(_is_ids(part) for part in given)):
            raise ApiError(400, "{param}: a string, a list of strings, a list of token ids or a list of such lists is needed", param="input", code="invalid_type")
        if "" in given:
            raise ApiError(400, "{param}: an empty text has no meaning to find", param=f"input.{given.index('')}", code="invalid_value")
        return given


class RerankBody(Body):
    """Jina's and Cohere's request for the order of documents."""

    query: str
    documents: list[Any]
    top_n: Count | None = None
    return_documents: bool = True

    def texts(self) -> list[str]:
        """The documents: texts, or objects with one under ``text``."""
        texts = [document.get("text") if isinstance(document, dict) else document for document in self.documents]
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ApiError(400, "{param}: a text, or an object with one under text, is needed", param=f"documents.{index}", code="invalid_type")
        if not texts:
            raise ApiError(400, "{param}: there is nothing in it", param="documents", code="invalid_value")
        return texts


def read_json(raw: bytes) -> dict[str, Any]:
    """The JSON object in a request's body, or an ApiError."""
    try:
        data = json.loads(raw, parse_constant=_refuse_constant)
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, "the body is not valid JSON: {error}", code="invalid_json", error=ascii(str(error))[1:-1]) from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return data


def parse(cls: type[BodyType], data: dict[str, Any]) -> BodyType:
    """A checked body, or an ApiError that names the field."""
    kept = {}
    for name, value in data.items():
        if name in LABELS:
            continue
        if name in NEUTRAL and name not in cls.model_fields:
            if value is not None and value not in NEUTRAL[name] and not (name == "best_of" and value == data.get("n")):
                raise unsupported(name)
            continue
        kept[name] = value
    try:
        return cls.model_validate(kept)
    except ValidationError as error:
        raise _explain(cls, error) from None


def _explain(cls: type[Body], error: ValidationError) -> ApiError:
    detail = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in detail["loc"])[:200]
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        guess = nearest(key, cls.model_fields) if len(detail["loc"]) == 1 else None
        hint = "unknown field {param}; did you mean {guess}?" if guess else "unknown field {param}"
        return ApiError(400, hint, param=param, code="unknown_parameter", guess=guess)
    if detail["type"] == "missing":
        return ApiError(400, "{param}: a value is required", param=param, code="missing_required_parameter")
    return ApiError(
        400,
        "{param}: {problem} (given: {given})",
        param=param,
        code="invalid_type" if "type" in detail["type"] else "invalid_value",
        problem=detail["msg"],
        given=repr(detail["input"])[:80],
    )


def _plain(message: Message, index: int) -> dict[str, Any]:
    param = f"messages.{index}.content"
    content = message.content
    if isinstance(content, list):
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ApiError(400, "{param}: only parts of type text are supported", param=param, code="unsupported_content")
            texts.append(part["text"])
        content = "".join(texts)
    if not isinstance(content, str):
        raise ApiError(400, "{param}: a string or a list of text parts is needed", param=param, code="invalid_type")
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, int) and not isinstance(part, bool) for part in value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
