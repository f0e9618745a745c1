"""A client of OpenAI-compatible servers, on the standard library alone. Nothing is sent but to the address that the recipe names."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from luban.examples.config import EndpointConfig
from luban.foundation.console import warn
from luban.foundation.environment import secret
from luban.foundation.errors import ConfigError, LubanError

_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed
_LONGEST_WAIT = 60.0  # seconds between two tries
_LARGEST_ANSWER = 1 << 24  # bytes
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the texts to an address that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """Asks ``/chat/completions`` of one server; several requests at once, answers in the order of the prompts."""

    from_text = False

    def __init__(self, config: EndpointConfig, wait: Callable[[float], None] = time.sleep):
        """Raises ConfigError where the variable that should hold the key is not set."""
        self.config, self._wait = config, wait
        self._key = secret(config.key_variable) if config.key_variable else None
        if config.key_variable and not self._key:
            raise ConfigError(
                "endpoint.key_variable: the environment variable {name} is not set", "", "export {name}=… before the command", name=config.key_variable
            )
        address = urlsplit(config.base_url)
        if self._key and address.scheme == "http" and address.hostname not in _LOOPBACK:
            warn("the key of {url} goes over the network unencrypted: use https", url=config.base_url)
        direct = [urllib.request.ProxyHandler({})] if address.hostname in _LOOPBACK else []  # no proxy stands between a machine and itself
        self._opener = urllib.request.build_opener(_NoRedirects, *direct)

    def write(self, prompts: Sequence[str], seed: int) -> list[tuple[str, str]]:
        """(text, "") for each prompt, or ("", problem): ``too long``, ``cut``, ``empty``. Raises LubanError where the server does not serve."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            try:
                return list(pool.map(lambda prompt: self._ask(prompt, seed), prompts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, prompt: str, seed: int) -> tuple[str, str]:
        if len(prompt) > self.config.maximum_characters:
            return "", "too long"
        said = self._post(
            {
                "model": self.config.model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": self.config.temperature,
                "max_tokens": self.config.maximum_tokens,
                "seed": seed % (1 << 31),
            }
        )
        try:
            choice = said["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
            if not isinstance(text, str):
                raise TypeError("the content is no text")
        except (KeyError, IndexError, TypeError) as error:
            raise self._error("the server's answer is no chat completion: {detail}", detail=f"{type(error).__name__} {error}: {json.dumps(said)[:300]}") from None
        text = _answer_of(text)
        return ("", "cut") if reason == "length" else (text, "") if text else ("", "empty")

    def _post(self, body: dict[str, Any]) -> Any:
        """The parsed answer; sent again, with growing waits, while the server is busy or out of reach."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "luban"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        for attempt in range(self.config.retries + 1):
            asked = urllib.request.Request(f"{self.config.base_url.rstrip('/')}/chat/completions", data, headers)
            wait = min(2.0**attempt, _LONGEST_WAIT)
            try:
                with self._opener.open(asked, timeout=self.config.timeout_seconds) as answer:
                    return self._parsed(answer.read(_LARGEST_ANSWER + 1))
            except urllib.error.HTTPError as error:
                detail = error.read(2000).decode("utf-8", "replace").strip()
                if error.code not in _BUSY:
                    raise self._refusal(error.code, detail) from None
                problem = f"HTTP {error.code} {detail[:200]}"
                wait = _asked_wait(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:  # no connection, a connection that broke, or no answer in time
                problem = str(getattr(error, "reason", None) or error) or type(error).__name__
            if attempt < self.config.retries:
                self._wait(wait)
        raise self._error("the server did not answer after {tries} tries: {detail}", tries=self.config.retries + 1, detail=problem)

    def _parsed(self, data: bytes) -> Any:
        try:
            if len(data) > _LARGEST_ANSWER:
                raise ValueError("more than 16 MiB")
            return json.loads(data)
        except ValueError as error:
            raise self._error("the server's answer is no JSON: {detail}", detail=f"{error}: {data[:200].decode('utf-8', 'replace')}") from None

    def _refusal(self, status: int, detail: str) -> LubanError:
        if status in (401, 403):
            return self._error("the server refuses the key (HTTP {status}): {detail}", status=status, detail=detail[:300])
        if 300 <= status < 400:
            return self._error("the server sends elsewhere (HTTP {status}), and redirects are not followed: name the final address", status=status)
        return self._error("the server refuses the request (HTTP {status}): {detail}", status=status, detail=detail[:300])

    def _error(self, what: str, **values: Any) -> LubanError:
        """An error about this server; a key that the server repeats is blotted out."""
        if self._key:
            values = {name: str(value).replace(self._key, "•••") for name, value in values.items()}
        return LubanError(
            what, "asked: {url}, model {model}", "check endpoint.base_url, endpoint.model and the key; what was finished is kept, and the same command continues",
            url=self.config.base_url, model=self.config.model, **values,
        )  # fmt: skip


def _asked_wait(header: str | None, otherwise: float) -> float:
    """Seconds that the server asks to wait, within reason; dates are not understood."""
    try:
        return min(max(float(header or ""), 0.0), _LONGEST_WAIT)
    except ValueError:
        return otherwise


def _answer_of(text: str) -> str:
    """The text without a model's aloud thinking and without quotation marks around the whole."""
    text = text.rpartition("</think>")[2].strip()
    for opening, closing in ('""', "“”", "「」", "''"):
        if len(text) > 2 and text[0] == opening and text[-1] == closing and not set(text[1:-1]) & {opening, closing}:
            return text[1:-1].strip()
    return text
