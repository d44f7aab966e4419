"""The client that `llm.client` names. Each is imported when it is wanted: torch and transformers take seconds."""

from __future__ import annotations

from driftline.configs.settings import LLM
from driftline.llm.client import LLMClient, TemplateClient


def make_client(settings: LLM) -> LLMClient:
    """The client that the settings name.

    Raises:
        MissingModelError: the model in process was not fetched.
    """
    if settings.client == "smollm":
        from driftline.llm.smollm import SmolLMClient

        return SmolLMClient(settings)
    if settings.client == "openai":
        from driftline.llm.openai import OpenAIClient

        return OpenAIClient(settings)
    return TemplateClient()
