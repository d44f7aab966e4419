"""Titles as words: stems, plurals, and what the lexicon of a prompt file sees in them. Each is read once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from driftline.llm.prompts import Prompts

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SPLIT = re.compile(r"\s*[,;+&/]\s*|\s+(?:and|with|of|in|for)\s+")
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_ARTICLE = re.compile(r"^(.+), (the|an?)$")
_READ = 100_000
"""Titles whose reading is kept."""
LONGEST_RUN = 3
_NUMBER = re.compile(r"^\d|^s/\d|^[a-z]$")
PREPOSITIONS = frozenset(("of", "in", "with", "and", "for", "the", "a", "to", "on", "from", "by", "or"))
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
class Run:
    """Neighbouring words of a title: their text, their stems, the stem that follows in the same part or ""."""

    text: str
    words: Ngram
    follower: str


@dataclass(frozen=True, slots=True)
class Title:
    """What a title holds, whoever bought it.

    Attributes:
        ignored: it names no product.
        categories: that the lexicon sees in it.
        head: the kind of product that it names.
        runs: of one to three words without a number.
    """

    text: str
    words: Ngram
    ignored: bool
    categories: tuple[str, ...]
    head: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The prompt file's words in the form in which titles are matched.

    Attributes:
        terms: stems of a term -> the categories that it shows.
        parts: every stem of every term.
        generic: stems that make no product line.
        read: titles that were read before.
    """

    terms: dict[Ngram, tuple[str, ...]]
    parts: frozenset[str]
    generic: frozenset[str]
    ignored: re.Pattern[str]
    longest: int
    read: dict[str, Title] = field(default_factory=dict)

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

    def title(self, raw: str) -> Title:
        """Reads a title, once."""
        found = self.read.get(raw)
        if found is None:
            text = clean_title(raw)
            words = stems(text)
            ignored = not text or self.ignored.search(text) is not None
            found = Title(text, words, ignored, tuple(self.categories_of(words)), self.head_of(words), _runs(text))
            if len(self.read) >= _READ:
                self.read.clear()
            self.read[raw] = found
        return found

    def head_of(self, words: Ngram) -> str:
        """The kind of product that a title names: its last term, or its last word."""
        for end in range(len(words), 0, -1):
            for n in range(self.longest, 0, -1):
                if words[max(0, end - n) : end] in self.terms:
                    return " ".join(words[max(0, end - n) : end])
        return words[-1] if words else ""


def _runs(text: str) -> tuple[Run, ...]:
    """Runs of neighbouring words that stand in one part of a title and hold no number, each once for a follower."""
    found: dict[Run, None] = {}
    for part in _SPLIT.split(text):
        words = part.split()
        for i, n in product(range(len(words)), range(1, LONGEST_RUN + 1)):
            run = words[i : i + n]
            if len(run) == n and all(_WORD.fullmatch(word) and not _NUMBER.search(word) for word in run):
                follower = stem(words[i + n]) if i + n < len(words) else ""
                found[Run(" ".join(run), tuple(stem(word) for word in run), follower)] = None
    return tuple(found)
