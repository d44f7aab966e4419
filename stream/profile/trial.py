"""A prompt file tried on a log: what is asked of some users, what may be answered, and what stands of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.llm.client import LLMClient, TemplateClient
from driftline.llm.clients import make_client
from driftline.llm.generator import ProfileGenerator
from driftline.llm.offline import requests_of_log
from driftline.llm.openai import messages
from driftline.llm.prompts import ProfilePrompt
from driftline.llm.request import ProfileRequest
from driftline.stream.events.columns import without_duplicates
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.replay.inputs import catalogue_of, log_events
from driftline.stream.replay.log import EventLog

ROWS = 50_000
"""First rows of the file that are looked at."""


class _Heard:
    """A client that keeps what it was asked and what it answered."""

    def __init__(self, client: LLMClient) -> None:
        self._client, self.source = client, client.source
        self.prompts: list[ProfilePrompt] = []
        self.answers: list[str] = []

    def generate(self, prompts: Sequence[ProfilePrompt]) -> list[str]:
        """Those of the client."""
        answers = self._client.generate(prompts)
        self.prompts += prompts
        self.answers += answers
        return answers


def trials(settings: Settings, events: Path, items: Path, users: int, model: bool) -> dict[str, Any]:
    """Profiles of some users, with all that led to them.

    Args:
        users: how many at most, by a hash of their ids; the newest request of each.
        model: asks the client of the settings; else the template answers.

    Raises:
        InputError: a file can't be read, or no user of the first rows has `profiles.first_events` events.
    """
    columns, _ = without_duplicates(read_columns(events), settings.state.dedupe_ids)
    columns = columns.take(np.arange(min(ROWS, len(columns))))
    log = EventLog(columns, settings.action)
    newest: dict[str, ProfileRequest] = {}
    due = 0
    for request in requests_of_log(log_events(log), catalogue_of(read_items(items)), settings):
        newest[request.user_id] = request
        due += 1
    if not newest:
        raise InputError(
            f"{events}: none of {len(log.user_ids):,} users in {len(log):,} rows is due for a profile; expected "
            f"{settings.profiles.first_events} events of one: set profiles.first_events lower"
        )
    chosen = sorted(newest.values(), key=lambda request: (crc32(request.user_id.encode()), request.user_id))[:users]
    heard = _Heard(make_client(settings.llm) if model else TemplateClient())
    generator = ProfileGenerator(heard, settings.profiles)
    profiles = generator.generate(chosen)
    asked = zip(heard.prompts, heard.answers, profiles, strict=True)
    return {
        "source": heard.source,
        "prompts": settings.profiles.prompts,
        "events": len(log),
        "requests": due,
        "users_due": len(newest),
        "users": [
            {
                "user_id": profile.user_id,
                "record": prompt.record,
                "may_be_answered": {q.facet: dict(q.candidates) for q in prompt.questions},
                "prompt_chars": sum(len(message["content"]) for message in messages(prompt)),
                "answer": answer,
                "facets": profile.facets,
                "facet_sources": profile.facet_sources,
                "text": profile.text,
            }
            for prompt, answer, profile in asked
        ],
    }
