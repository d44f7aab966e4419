"""The seam between profiles and language models, and the client that needs no model.

A client answers a prompt with one line for each facet, as in the examples of the prompt file:

    Customer: keen home baker
    Interests: cake cases, rolling pins
    Categories: baking
    Product lines: tulip

An empty answer, or an empty line, means that the client has none; the generator then takes the template's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from driftline.graph.view import FACETS
from driftline.llm.prompts import ProfilePrompt, Prompts, Question
from driftline.llm.titles import PREPOSITIONS, stems


class LLMClient(Protocol):
    """Something that answers profile prompts."""

    @property
    def source(self) -> str:
        """What is stamped on profiles: "llm:smollm2-135m", "openai:<model>", "template"."""
        ...

    def generate(self, prompts: Sequence[ProfilePrompt]) -> list[str]:
        """One answer for each prompt, in their order; a function of each prompt alone."""
        ...


class TemplateClient:
    """Answers with what the history supports best. Deterministic, and a microsecond's work."""

    source = "template"

    def generate(self, prompts: Sequence[ProfilePrompt]) -> list[str]:
        """The best supported answers of each facet."""
        return [
            answer_lines(prompt.prompts, {q.facet: choose(q, [n for _, n in q.candidates]) for q in prompt.questions})
            for prompt in prompts
        ]


def choose(question: Question, scores: Sequence[float]) -> str:
    """The candidates with the highest scores; one that shares its first or last word with a chosen one is passed over.

    Args:
        scores: one for each candidate; ties go to the earlier one.
    """
    chosen: list[str] = []
    taken: set[str] = set()
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        text = question.candidates[i][0]
        words = [word for word in stems(text) if word not in PREPOSITIONS]
        if not words or {words[0], words[-1]} & taken:
            continue
        chosen.append(text)
        taken |= {words[0], words[-1]}
        if len(chosen) == question.picks:
            break
    return ", ".join(chosen)


def answer_lines(prompts: Prompts, facets: Mapping[str, str]) -> str:
    """The answer of a client from its facets."""
    return "\n".join(f"{prompts.cues[facet]} {facets[facet]}" for facet in FACETS)


def unquoted(phrase: str) -> str:
    """A phrase without blanks and full stops around it, nor quotes that have no partner in it or hold it all."""
    text = phrase.strip(" .")
    for quote in "\"'":
        marks = len(re.findall(rf"(?<!\w){quote}|{quote}(?!\w)", text))  # one between letters is an apostrophe
        if marks == 2 and text[0] == text[-1] == quote:
            return unquoted(text[1:-1])
        if marks == 1 and quote in (text[0], text[-1]):
            text = text.strip(quote)
    return text.strip(" .")


def parse_answer(prompts: Prompts, answer: str) -> dict[str, tuple[str, ...]]:
    """The phrases of each facet in an answer; lines that begin with no cue are passed over.

    Cues are matched without case and without list marks, the first line of a facet counts.
    """
    facets: dict[str, tuple[str, ...]] = dict.fromkeys(FACETS, ())
    for raw in answer.splitlines():
        line = raw.strip().lstrip("-*# ").replace("**", "")
        for facet in FACETS:
            cue = prompts.cues[facet]
            if line.lower().startswith(cue.lower()) and not facets[facet]:
                phrases = (unquoted(phrase) for phrase in line[len(cue) :].split(","))
                facets[facet] = tuple(dict.fromkeys(phrase for phrase in phrases if phrase))
    return facets
