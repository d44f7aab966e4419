"""What a history supports: candidate answers for each facet, and the check that an answer is grounded.

Crowds and categories come from the catalogue or from the prompt file's lexicon, interests and product lines are
phrases that recur in the titles of the history. Nothing here knows a model: a client chooses among the candidates or
writes freely, and `grounded` decides what of an answer may stand.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from configs.settings import Profiles
from llm.prompts import FACETS, ProfilePrompt, Prompts, Question, level_words, record_text
from llm.request import ProfileRequest

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SPLIT = re.compile(r"\s*[,;+&/]\s*|\s+(?:and|with|of|in|for)\s+")
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_ARTICLE = re.compile(r"^(.+), (the|an?)$")
_NUMBER = re.compile(r"^\d|^s/\d|^[a-z]$")
_PREPOSITIONS = frozenset(("of", "in", "with", "and", "for", "the", "a", "to", "on", "from", "by", "or"))
_UNCOUNTED = frozenset(("cutlery", "bunting", "stationery", "incense", "jewellery", "confectionery", "decor", "glass"))
Ngram = tuple[str, ...]


def clean_title(title: str) -> str:
    """A title in lower case with single spaces, without a year at its end, its article in front."""
    text = _YEAR.sub("", " ".join(title.lower().split())).strip(" .,")
    return _ARTICLE.sub(r"\2 \1", text)


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """A word without its plural ending; enough to match titles, not linguistics."""
    word = word.replace("’", "'").removesuffix("'s").removesuffix("s'")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def stems(text: str) -> Ngram:
    """The stems of a text's words."""
    return tuple(stem(word) for word in _WORD.findall(text.lower()))


def plural(phrase: str) -> str:
    """A phrase with its last word in the plural."""
    if phrase.split()[-1] in _UNCOUNTED:
        return phrase
    if phrase.endswith(("s", "x", "ch", "sh")):
        return phrase if phrase.endswith("s") and not phrase.endswith("ss") else phrase + "es"
    if phrase.endswith("y") and phrase[-2:-1] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + "s"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The prompt file's words in the form in which titles are matched.

    Attributes:
        terms: stems of a term -> the categories that it shows.
        parts: every stem of every term.
        generic: stems that make no product line.
    """

    terms: dict[Ngram, tuple[str, ...]]
    parts: frozenset[str]
    generic: frozenset[str]
    ignored: re.Pattern[str]
    longest: int

    @classmethod
    def of(cls, prompts: Prompts) -> Lexicon:
        """Built once for a prompt file."""
        terms: dict[Ngram, list[str]] = {}
        for category, words in prompts.categories.items():
            for word in words:
                terms.setdefault(stems(word), []).append(category)
        return cls(
            terms={term: tuple(categories) for term, categories in terms.items()},
            parts=frozenset(word for term in terms for word in term),
            generic=frozenset(stem(word.lower()) for word in prompts.generic),
            ignored=re.compile("|".join(f"(?:{pattern})" for pattern in prompts.ignore_titles) or r"(?!)"),
            longest=max((len(term) for term in terms), default=1),
        )

    def categories_of(self, words: Ngram) -> dict[str, None]:
        """The categories that a title's stems show, in order of appearance."""
        found: dict[str, None] = {}
        for n in range(self.longest, 0, -1):
            for i in range(len(words) - n + 1):
                for category in self.terms.get(words[i : i + n], ()):
                    found[category] = None
        return found

    def head_of(self, words: Ngram) -> str:
        """The kind of product that a title names: its last term, or its last word."""
        for end in range(len(words), 0, -1):
            for n in range(self.longest, 0, -1):
                if words[max(0, end - n) : end] in self.terms:
                    return " ".join(words[max(0, end - n) : end])
        return words[-1] if words else ""


@dataclass(slots=True)
class Evidence:
    """What one history supports. All counts are events.

    Attributes:
        titles: (clean title, events), most frequent first; rows that are no products are left out.
        words: every stem of titles, categories and brands.
        categories: category -> events; the catalogue's own, or by the lexicon.
        crowds: crowd -> events.
    """

    titles: list[tuple[str, int]] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    categories: Counter[str] = field(default_factory=Counter)
    crowds: Counter[str] = field(default_factory=Counter)


def evidence_of(request: ProfileRequest, prompts: Prompts, lexicon: Lexicon) -> Evidence:
    """Reads a request against the lexicon."""
    found = Evidence()
    by_lexicon: Counter[str] = Counter()
    for title, n in request.titles:
        text = clean_title(title)
        if not text or lexicon.ignored.search(text):
            continue
        found.titles.append((text, n))
        words = stems(text)
        found.words.update(words)
        for category in lexicon.categories_of(words):
            by_lexicon[category] += n
    for name, n in (*request.categories, *request.brands):
        found.words.update(stems(name))
        by_lexicon.update(dict.fromkeys(lexicon.categories_of(stems(name)), n))
    found.categories = Counter(dict(request.categories)) if request.categories else by_lexicon
    total = sum(n for _, n in found.titles)
    for crowd, support in prompts.crowd.items():
        known = by_lexicon + Counter(dict(request.categories))
        n = sum(known[category] for category in support.categories)
        if support.mean_value is not None and request.mean_value is not None:
            n += total // 3 if request.mean_value >= support.mean_value else 0
        if n:
            found.crowds[crowd] = n
    return found


def make_prompt(request: ProfileRequest, prompts: Prompts, lexicon: Lexicon, settings: Profiles) -> ProfilePrompt:
    """The prompt of one user: the record in words, and a question for each facet."""
    found = evidence_of(request, prompts, lexicon)
    levels = (
        level_words(prompts.value_levels, request.mean_value),
        level_words(prompts.price_levels, request.price_ratio),
    )
    shown = tuple(title for title, _ in found.titles[: settings.prompt_titles])
    record = record_text(prompts, shown, request.domain, " ".join(level for level in levels if level))
    brands = Counter(dict(request.brands)) or _lines(found, lexicon)
    answers = {
        "crowd": found.crowds,
        "interests": _interests(found, lexicon) if prompts.interests == "kinds" else _short_titles(found),
        "categories": found.categories,
        "brands": brands,
    }
    questions = tuple(
        Question(facet, _best(answers[facet], settings), 1 if facet == "crowd" else settings.picks) for facet in FACETS
    )
    return ProfilePrompt(request, prompts, record, questions)


def _best(counts: Counter[str], settings: Profiles) -> tuple[tuple[str, int], ...]:
    """The best supported answers; one with too small a share of the best one's events is left out."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: settings.candidates]
    return tuple((text, n) for text, n in ranked if n >= settings.support_share * ranked[0][1])


@dataclass(slots=True)
class _Phrase:
    """A phrase of the titles: its events, its titles, and the kinds of product that it goes with."""

    words: Ngram
    events: int = 0
    titles: int = 0
    heads: set[str] = field(default_factory=set)
    followers: set[str] = field(default_factory=set)


def _phrases(found: Evidence, lexicon: Lexicon, longest: int) -> dict[str, _Phrase]:
    """Runs of neighbouring words that stand in one part of a title and hold no number."""
    phrases: dict[str, _Phrase] = {}
    for title, n in found.titles:
        head = lexicon.head_of(stems(title))
        seen: set[str] = set()
        for part in _SPLIT.split(title):
            words = part.split()
            for i, k in product(range(len(words)), range(1, longest + 1)):
                run = words[i : i + k]
                if len(run) < k:
                    continue
                if not all(_WORD.fullmatch(word) and not _NUMBER.search(word) for word in run):
                    continue
                text = " ".join(run)
                phrase = phrases.setdefault(text, _Phrase(tuple(stem(word) for word in run)))
                if text not in seen:
                    seen.add(text)
                    phrase.events += n
                    phrase.titles += 1
                    phrase.heads.add(head)
                phrase.followers.add(stem(words[i + k]) if i + k < len(words) else "")
    return phrases


def _interests(found: Evidence, lexicon: Lexicon) -> Counter[str]:
    """Kinds of product: two or three words that end in a term of the lexicon, whose noun does not go on after them."""
    kept: Counter[str] = Counter()
    for text, phrase in _phrases(found, lexicon, 3).items():
        words = phrase.words
        whole = words in lexicon.terms
        ends = any(words[-k:] in lexicon.terms for k in range(1, len(words) + 1))
        goes_on = bool(phrase.followers) and phrase.followers <= lexicon.parts
        if len(words) > 1 and not goes_on and (whole or (ends and words[0] not in lexicon.generic)):
            kept[text] = phrase.events
    if not kept:  # a catalogue whose words the lexicon does not know: its short titles as they are
        return _short_titles(found)
    merged: Counter[str] = Counter()
    for text, n in _without_parts(kept).items():
        merged[plural(text)] += n
    return merged


def _short_titles(found: Evidence) -> Counter[str]:
    """Titles that can stand in a list."""
    return Counter({title: n for title, n in found.titles if 1 < len(title.split()) <= 5 and "," not in title})


def _lines(found: Evidence, lexicon: Lexicon) -> Counter[str]:
    """Product lines: one or two words that go with several kinds of product and name none."""
    kept: Counter[str] = Counter()
    for text, phrase in _phrases(found, lexicon, 2).items():
        plain = not any(word in lexicon.generic or word in lexicon.parts for word in phrase.words)
        if plain and len(phrase.heads) >= 2 and len(text) > 2:
            kept[text] = phrase.events
    return _without_parts(kept)


def _without_parts(counts: Counter[str]) -> Counter[str]:
    """Leaves out a phrase that is part of a longer one with at least 70% of its count."""
    kept: Counter[str] = Counter()
    for text in sorted(counts, key=lambda text: (-len(text), text)):
        if not any(f" {text} " in f" {longer} " and counts[longer] >= 0.7 * counts[text] for longer in kept):
            kept[text] = counts[text]
    return kept


def grounded(facet: str, answer: str, prompt: ProfilePrompt, found: Evidence) -> bool:
    """Whether the history supports one answer of a facet.

    A crowd or a category must be one that the history supports. An interest or a product line stands if every
    content word of it occurs in the history's titles, categories or brands.
    """
    words = [word for word in stems(answer) if word not in _PREPOSITIONS]
    if facet == "crowd":
        return any(stems(crowd) == stems(answer) for crowd in found.crowds)
    if facet == "categories" and any(stems(category) == stems(answer) for category in found.categories):
        return True
    if facet == "brands" and any(stems(brand) == stems(answer) for brand, _ in prompt.request.brands):
        return True
    return bool(words) and facet != "categories" and all(word in found.words for word in words)
