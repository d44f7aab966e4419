"""Prompt files: what a model is asked in one kind of business, and the words that an answer may rest on.

A file in configs/prompts is data: instruction, few-shot examples, names of crowds, a lexicon for catalogues without
categories. Its sha256 is stamped on every profile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from driftline.configs.errors import ConfigError
from driftline.configs.explain import quoted
from driftline.configs.files import compose
from driftline.graph.view import FACETS
from driftline.llm.prompt_file import faults_in, faults_of, told
from driftline.llm.request import ProfileRequest

PROMPTS = Path(__file__).resolve().parents[1] / "configs" / "prompts"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Level(_Data):
    """Words for a number below a bound; levels are read in order."""

    below: float
    words: str


class Support(_Data):
    """What must be in a history before a crowd may be its answer: one of these categories, or a mean value."""

    categories: tuple[str, ...] = ()
    mean_value: float | None = None


class Example(_Data):
    """One made-up user with the right answers."""

    titles: tuple[str, ...]
    domain: str
    level: str
    crowd: str
    interests: str
    categories: str
    brands: str


class Sentences(_Data):
    """Parts of a profile's text. {crowd}, {interests}, {categories}, {brands} and {place} are filled in."""

    crowd: str
    interests: str
    categories: str
    brands: str
    brands_alone: str
    empty: str
    place: str


class Prompts(_Data):
    """One prompt file. The comments of configs/prompts/ecommerce.yaml explain every key."""

    instruction: str
    record: str
    neutral: str
    cues: dict[str, str]
    value_levels: tuple[Level, ...]
    price_levels: tuple[Level, ...]
    places: dict[str, str]
    sentences: Sentences
    crowd: dict[str, Support]
    categories: dict[str, tuple[str, ...]]
    generic: tuple[str, ...]
    ignore_titles: tuple[str, ...]
    interests: Literal["kinds", "titles"] = "kinds"
    examples: tuple[Example, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Question:
    """One facet of one user: what may be answered, the best supported answer first.

    Attributes:
        candidates: (answer, events of the history that support it).
        picks: answers wanted at most.
    """

    facet: str
    candidates: tuple[tuple[str, int], ...]
    picks: int


@dataclass(frozen=True, slots=True)
class ProfilePrompt:
    """Everything that a client needs to answer for one user.

    Attributes:
        record: the user's history in words.
        questions: one for each of FACETS.
    """

    request: ProfileRequest
    prompts: Prompts
    record: str
    questions: tuple[Question, ...]


def path_of(name: str) -> Path:
    """The file of a name in configs/prompts, or the path itself."""
    return Path(name) if name.endswith((".yaml", ".yml")) else PROMPTS / f"{name}.yaml"


def load_prompts(name: str) -> Prompts:
    """The prompt file of that name in configs/prompts, or at that path.

    Raises:
        ConfigError: there is none, it is not YAML, a key is missing, unknown or of the wrong kind, or a text lacks a
            placeholder or has one that nothing is filled into; with a sentence for each.
    """
    path = path_of(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.yaml")))
        raise ConfigError(
            f"profiles.prompts is {name!r}, but {path} can't be read (there is no such file); give one of {known}, "
            "or a path to a YAML file"
        )
    node = compose(path, yaml.BaseLoader)  # every scalar is text: "on" and "no" are words here
    tree = None if node is None else yaml.BaseLoader("").construct_document(node)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got {quoted(tree)}; expected the keys of {PROMPTS / 'ecommerce.yaml'}")
    faults = list(faults_in(tree))
    try:
        prompts = Prompts(**tree | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    except ValidationError as error:
        faults += faults_of(error, Prompts)
    if faults:
        raise ConfigError(*told(path, faults))
    return prompts


def record_text(prompts: Prompts, titles: tuple[str, ...], domain: str, level: str) -> str:
    """A history in the words of the prompt file."""
    return prompts.record.format(titles=", ".join(titles), domain=domain or "unknown", level=level).rstrip()


def level_words(levels: tuple[Level, ...], value: float | None) -> str:
    """The words of the first level above a value; "" without one."""
    if value is None:
        return ""
    return next((level.words for level in levels if value < level.below), "")


def example_answers(prompts: Prompts, example: Example) -> str:
    """The lines that answer an example."""
    return "\n".join(f"{prompts.cues[facet]} {getattr(example, facet)}" for facet in FACETS)


def sentences(prompts: Prompts, facets: dict[str, str], domain: str) -> str:
    """One or two sentences that say the facets; an empty facet is left out."""
    words = prompts.sentences
    name = prompts.places.get(domain, domain)
    place = words.place.format(place=name) if name else ""
    if not any(facets.values()):
        return words.empty.format(place=place) + "."
    crowd = facets["crowd"] or "customer"
    article = "An" if crowd[0].lower() in "aeiou" else "A"
    text = words.crowd.format(A=article, crowd=crowd, place=place)
    spoken = {facet: spoken_list(facets[facet]) for facet in FACETS}
    if facets["interests"]:
        text += words.interests.format(interests=spoken["interests"])
    text += "."
    if facets["categories"]:
        text += words.categories.format(categories=spoken["categories"])
        text += words.brands.format(brands=spoken["brands"]) if facets["brands"] else ""
        text += "."
    elif facets["brands"]:
        text += words.brands_alone.format(brands=spoken["brands"]) + "."
    return text


def spoken_list(answer: str) -> str:
    """ "a, b, c" as it is said: "a, b and c"."""
    *most, last = answer.split(", ")
    return f"{', '.join(most)} and {last}" if most else last
