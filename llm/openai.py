"""Any OpenAI-compatible endpoint (vLLM, Ollama, hosted): one chat call a user, over plain HTTP.

A call that times out, breaks off or ends in 408, 429 or 5xx is tried again, `llm.retries` times with growing waits.
A user whose tries are used up gets an empty answer, which the generator replaces by the template's; an answer that says
that every call must fail (wrong key, wrong path, unknown model) raises.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from driftline.configs.errors import EndpointError
from driftline.configs.settings import LLM
from driftline.graph.view import FACETS
from driftline.llm.prompts import ProfilePrompt, example_answers, record_text

_TRY_AGAIN = frozenset((408, 425, 429))
_HOPELESS = frozenset((401, 403, 404, 405))
_CHECK_S = 5.0


class OpenAIClient:
    """Writes freely; what the history does not support is left out by the generator.

    Attributes:
        failed: prompts that got an empty answer because their tries were used up.
        retried: further tries in total.
    """

    def __init__(self, settings: LLM, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings, self._sleep = settings, sleep
        self.source = f"openai:{settings.model}"
        self.failed = self.retried = 0
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        try:
            self._http = httpx.Client(
                base_url=settings.base_url.rstrip("/") + "/",
                headers=headers,
                timeout=settings.timeout_s,
                transport=httpx.HTTPTransport() if _is_local(settings.base_url) else None,
            )
        except ImportError as error:
            raise EndpointError(
                f"llm.base_url {settings.base_url!r} would be asked through the SOCKS proxy of all_proxy ({error}); "
                "name its host in no_proxy, or set https_proxy to an HTTP proxy"
            ) from None
        except (httpx.InvalidURL, ValueError) as error:
            raise EndpointError(
                f"llm.base_url is {settings.base_url!r} ({error}); expected an address such as http://host:port/v1"
            ) from None

    def generate(self, prompts: Sequence[ProfilePrompt]) -> list[str]:
        """One answer for each prompt, at most `llm.concurrency` calls at once.

        Raises:
            EndpointError: the endpoint refuses every call.
        """
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            return list(pool.map(self._answer, prompts))

    def check(self) -> str:
        """What the endpoint says of the model, in words: asked by its list of models, which costs no tokens.

        Raises:
            EndpointError: nothing answers, or it refuses the key, or it has another list of models.
        """
        at, model = self._settings.base_url, self._settings.model
        try:
            response = self._http.get("models", timeout=min(self._settings.timeout_s, _CHECK_S))
        except httpx.HTTPError as error:
            raise EndpointError(f"nothing answers at llm.base_url {at!r} ({error or type(error).__name__})") from None
        if response.status_code in (404, 405):
            return f"answers at {at}; it tells no list of models"
        if not response.is_success:
            raise EndpointError(f"{at} answered {response.status_code}; check llm.base_url and llm.api_key")
        names = _models(response)
        if names and model.removesuffix(":latest") not in names:
            few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise EndpointError(f"{at} has no model {model!r}; set llm.model to one of its own: {few}")
        return f"{model} at {at}"

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _answer(self, prompt: ProfilePrompt) -> str:
        body = {
            "model": self._settings.model,
            "messages": messages(prompt),
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
        }
        for attempt in range(self._settings.retries + 1):
            if attempt:
                self.retried += 1
                self._sleep(self._settings.backoff_s * 2 ** (attempt - 1))
            try:
                response = self._http.post("chat/completions", json=body)
            except httpx.TransportError:
                continue
            except httpx.InvalidURL as error:
                raise EndpointError(f"llm.base_url {self._settings.base_url!r} is no address: {error}") from None
            if response.status_code in _HOPELESS:
                raise EndpointError(
                    f"{response.request.url} answered {response.status_code} ({response.text[:120]!r}); check "
                    "llm.base_url, llm.model and llm.api_key"
                )
            if response.is_success:
                return _content(response)
            if response.status_code < 500 and response.status_code not in _TRY_AGAIN:
                break
        self.failed += 1
        return ""


def messages(prompt: ProfilePrompt) -> list[dict[str, str]]:
    """The chat of one user: rules and allowed answers, the examples as turns, the user's record."""
    prompts = prompt.prompts
    allowed = {q.facet: ", ".join(text for text, _ in q.candidates) for q in prompt.questions}
    lines = "\n".join(f"{prompts.cues[facet]} ..." for facet in FACETS)
    system = (
        f"{prompts.instruction}\nAnswer with these {len(FACETS)} lines and nothing else, phrases separated by commas:\n"
        f"{lines}\nUse only words of the record. "
        f"{prompts.cues['crowd']} one of: {allowed['crowd'] or 'leave it empty'}. "
        f"{prompts.cues['categories']} at most three of: {allowed['categories'] or 'leave it empty'}."
    )
    chat = [{"role": "system", "content": system}]
    for example in prompts.examples:
        record = record_text(prompts, example.titles, example.domain, example.level)
        chat.append({"role": "user", "content": record})
        chat.append({"role": "assistant", "content": example_answers(prompts, example)})
    return [*chat, {"role": "user", "content": prompt.record}]


def _is_local(base_url: str) -> bool:
    """Whether an address is of this machine: no proxy of the environment reaches it."""
    host = httpx.URL(base_url).host
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _models(response: httpx.Response) -> list[str]:
    """The names in a list of models, without the tag `latest` that Ollama adds; [] if the body is none."""
    try:
        return [str(one["id"]).removesuffix(":latest") for one in response.json()["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def _content(response: httpx.Response) -> str:
    """The text of a chat completion; "" if the body is none."""
    try:
        body: Any = response.json()
        return str(body["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        return ""
