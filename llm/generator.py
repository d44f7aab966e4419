"""Requests to profiles: prompt, model, check against the history, template where the check fails, vectors.

Whatever a model answers, a profile states nothing that the history does not support: a phrase that is not grounded is
left out, and a facet with none left takes the template's answer. Both are counted and stamped on the profile.
"""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import InputError
from driftline.configs.settings import Profiles
from driftline.graph.profile import Profile
from driftline.graph.view import FACETS
from driftline.llm.client import LLMClient, TemplateClient, parse_answer
from driftline.llm.encoder import TextEncoder
from driftline.llm.facets import Evidence, evidence_of, grounded, make_prompt
from driftline.llm.profile import FORMAT, read_header, read_profiles, with_vectors
from driftline.llm.prompts import ProfilePrompt, Prompts, load_prompts, sentences
from driftline.llm.request import ProfileRequest
from driftline.llm.titles import Lexicon


class ProfileGenerator:
    """Joins client, validator and encoder.

    Attributes:
        counts: "profiles", "llm" and "template" (profiles by source), "ungrounded" (phrases left out),
            "fallback.<facet>" (facets that took the template's answer), "without_text" (requests that the client was
            not asked for: nothing is known in words of what the user wanted).
    """

    def __init__(self, client: LLMClient, settings: Profiles, encoder: TextEncoder | None = None) -> None:
        self._client, self._settings, self._encoder = client, settings, encoder
        self._template = TemplateClient()
        self.prompts: Prompts = load_prompts(settings.prompts)
        self._lexicon = Lexicon.of(self.prompts)
        self.counts: Counter[str] = Counter()

    @property
    def source(self) -> str:
        """The client's stamp."""
        return self._client.source

    def generate(self, requests: Sequence[ProfileRequest]) -> list[Profile]:
        """One profile for each request, in their order, with vectors if there is an encoder."""
        found = [evidence_of(request, self.prompts, self._lexicon) for request in requests]
        prompts = [
            make_prompt(request, evidence, self.prompts, self._lexicon, self._settings)
            for request, evidence in zip(requests, found, strict=True)
        ]
        templates = self._template.generate(prompts)
        answers = templates if isinstance(self._client, TemplateClient) else self._asked(prompts, templates)
        profiles = [self._join(*parts) for parts in zip(prompts, found, answers, templates, strict=True)]
        return with_vectors(profiles, self._encoder) if self._encoder else profiles

    def _asked(self, prompts: Sequence[ProfilePrompt], templates: Sequence[str]) -> list[str]:
        """The client's answers; of requests without text the template's, which costs nothing and says as much."""
        worded = [prompt for prompt in prompts if prompt.request.has_text]
        self.counts["without_text"] += len(prompts) - len(worded)
        answers = iter(self._client.generate(worded) if worded else ())
        return [
            next(answers) if prompt.request.has_text else template
            for prompt, template in zip(prompts, templates, strict=True)
        ]

    def _join(self, prompt: ProfilePrompt, found: Evidence, answer: str, template: str) -> Profile:
        request = prompt.request
        written, default = parse_answer(self.prompts, answer), parse_answer(self.prompts, template)
        by_model = self._client.source != TemplateClient.source
        facets: dict[str, str] = {}
        sources: dict[str, str] = {}
        for facet in FACETS:
            kept = [phrase for phrase in written[facet] if grounded(facet, phrase, prompt, found)]
            self.counts["ungrounded"] += len(written[facet]) - len(kept)
            most = 1 if facet == "crowd" else self._settings.picks
            facets[facet] = ", ".join(kept[:most] or default[facet])
            sources[facet] = "none" if not facets[facet] else "llm" if kept and by_model else "template"
            self.counts[f"fallback.{facet}"] += by_model and sources[facet] == "template"
        source = self._client.source if "llm" in sources.values() else TemplateClient.source
        self.counts["profiles"] += 1
        self.counts["template" if source == TemplateClient.source else "llm"] += 1
        return Profile(
            user_id=request.user_id,
            facets=facets,
            text=sentences(self.prompts, facets, request.domain),
            source=source,
            facet_sources=sources,
            version=request.version,
            valid_from_ms=request.as_of_ms + self._settings.delay_ms,
            as_of_ms=request.as_of_ms,
            prompt_sha256=self.prompts.sha256,
            model=source.partition(":")[2],
        )

    def header(self) -> dict[str, Any]:
        """The first line of a profile file that this generator writes."""
        return {
            "format": FORMAT,
            "source": self._client.source,
            "prompts": Path(self._settings.prompts).stem,
            "prompt_sha256": self.prompts.sha256,
            "first_events": self._settings.first_events,
            "refresh_events": self._settings.refresh_events,
            "delay_ms": self._settings.delay_ms,
        }


def generate_file(
    requests: Iterable[ProfileRequest],
    out: Path,
    generator: ProfileGenerator,
    batch: int,
    resume: bool = True,
    most: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Writes a profile file, each batch as it is made; a run that was cut off goes on where it stopped.

    Lines go to `out`, or for a name in .gz to a plain file beside it that is packed when this returns.

    Args:
        most: profiles in the file at most; None = no bound.
        on_progress: called after each batch with the number of profiles in the file.
        stop: asked before each batch; true ends the run, which can be resumed.

    Returns:
        Profiles in the file.

    Raises:
        InputError: the file that is to be resumed was made with another model, prompt file or policy.
    """
    packed = out.suffix == ".gz"
    plain = out.with_suffix("") if packed else out
    plain.parent.mkdir(parents=True, exist_ok=True)
    if packed and resume and out.is_file() and not plain.is_file():
        plain.write_bytes(gzip.decompress(out.read_bytes()))
    done = _resumed(plain, generator) if resume and plain.is_file() else None
    if done is None:
        plain.write_bytes(orjson.dumps(generator.header()) + b"\n")
        done = set()
    with plain.open("ab") as file:
        waiting: list[ProfileRequest] = []
        for request in _with_end(requests):
            if request is not None and (request.user_id, request.version) not in done:
                waiting.append(request)
            if waiting and (request is None or len(waiting) == batch):
                room = batch if most is None else max(0, most - len(done))
                if stop() or not room:
                    break
                for profile in generator.generate(waiting[:room]):
                    file.write(profile.to_json(embedding=False) + b"\n")
                    done.add((profile.user_id, profile.version))
                file.flush()
                waiting.clear()
                on_progress(len(done))
    if packed:
        pack(plain, out)
        plain.unlink()
    return len(done)


def pack(plain: Path, out: Path) -> None:
    """Gzips a profile file; equal lines give equal bytes."""
    temporary = out.with_suffix(".tmp")
    temporary.write_bytes(gzip.compress(plain.read_bytes(), 9, mtime=0))
    os.replace(temporary, out)


def _with_end(requests: Iterable[ProfileRequest]) -> Iterable[ProfileRequest | None]:
    yield from requests
    yield None


def _resumed(plain: Path, generator: ProfileGenerator) -> set[tuple[str, int]] | None:
    """(user_id, version) of the profiles in a file that is to go on; None if it has no whole line."""
    data = plain.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        return None
    if len(whole) < len(data):
        plain.write_bytes(whole)  # the last line was cut off with the run
    header, expected = read_header(plain), generator.header()
    for key, value in expected.items():
        if header.get(key) != value:
            raise InputError(
                f"{plain} was made with {key} {header.get(key)!r}, this run has {value!r}; give another --out, "
                "or delete it"
            )
    return {(profile.user_id, profile.version) for profile in read_profiles(plain)}
