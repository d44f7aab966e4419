"""What a history supports: candidate answers for each facet, and the check that an answer is grounded.

Crowds and categories come from the catalogue or from the prompt file's lexicon, interests and product lines are
phrases that recur in the titles of the history. Nothing here knows a model: a client chooses among the candidates or
writes freely, and `grounded` decides what of an answer may stand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from driftline.configs.settings import Profiles
from driftline.graph.view import FACETS
from driftline.llm.prompts import ProfilePrompt, Prompts, Question, level_words, record_text
from driftline.llm.request import ProfileRequest
from driftline.llm.titles import PREPOSITIONS, Lexicon, Ngram, Title, plural, stems


@dataclass(slots=True)
class Evidence:
    """What one history supports. All counts are events.

    Attributes:
        titles: (title, events), most frequent first; rows that are no products are left out.
        words: every stem of titles, categories and brands.
        categories: category -> events; the catalogue's own, or by the lexicon.
        crowds: crowd -> events.
    """

    titles: list[tuple[Title, int]] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    categories: Counter[str] = field(default_factory=Counter)
    crowds: Counter[str] = field(default_factory=Counter)


def evidence_of(request: ProfileRequest, prompts: Prompts, lexicon: Lexicon) -> Evidence:
    """Reads a request against the lexicon."""
    found = Evidence()
    by_lexicon: Counter[str] = Counter()
    for raw, n in request.titles:
        title = lexicon.title(raw)
        if title.ignored:
            continue
        found.titles.append((title, n))
        found.words.update(title.words)
        for category in title.categories:
            by_lexicon[category] += n
    for name, n in (*request.categories, *request.brands):
        found.words.update(stems(name))
        by_lexicon.update(dict.fromkeys(lexicon.categories_of(stems(name)), n))
    found.categories = Counter(dict(request.categories)) if request.categories else by_lexicon
    total = sum(n for _, n in found.titles)
    known = by_lexicon + Counter(dict(request.categories))
    for crowd, support in prompts.crowd.items():
        n = sum(known[category] for category in support.categories)
        if support.mean_value is not None and request.mean_value is not None:
            n += total // 3 if request.mean_value >= support.mean_value else 0
        if n:
            found.crowds[crowd] = n
    return found


def make_prompt(
    request: ProfileRequest, found: Evidence, prompts: Prompts, lexicon: Lexicon, settings: Profiles
) -> ProfilePrompt:
    """The prompt of one user: the record in words, and a question for each facet."""
    levels = (
        level_words(prompts.value_levels, request.mean_value),
        level_words(prompts.price_levels, request.price_ratio),
    )
    shown = tuple(title.text for title, _ in found.titles[: settings.prompt_titles])
    record = record_text(prompts, shown, request.domain, " ".join(level for level in levels if level))
    phrases = _phrases(found)
    brands = Counter(dict(request.brands)) or _lines(phrases, lexicon)
    kinds = _interests(phrases, lexicon) if prompts.interests == "kinds" else None
    answers = {
        "crowd": found.crowds,
        "interests": kinds or _short_titles(found),
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
    """A phrase of a history's titles: its events, the kinds of product that it goes with, what follows it."""

    words: Ngram
    events: int = 0
    heads: set[str] = field(default_factory=set)
    followers: set[str] = field(default_factory=set)


def _phrases(found: Evidence) -> dict[str, _Phrase]:
    """The runs of all titles; a title counts once for a phrase."""
    phrases: dict[str, _Phrase] = {}
    for title, n in found.titles:
        seen: set[str] = set()
        for run in title.runs:
            phrase = phrases.get(run.text)
            if phrase is None:
                phrase = phrases[run.text] = _Phrase(run.words)
            if run.text not in seen:
                seen.add(run.text)
                phrase.events += n
                phrase.heads.add(title.head)
            phrase.followers.add(run.follower)
    return phrases


def _interests(phrases: dict[str, _Phrase], lexicon: Lexicon) -> Counter[str]:
    """Kinds of product: two or three words that end in a term of the lexicon, whose noun does not go on after them."""
    kept: Counter[str] = Counter()
    for text, phrase in phrases.items():
        words = phrase.words
        whole = words in lexicon.terms
        ends = any(words[-k:] in lexicon.terms for k in range(1, len(words) + 1))
        goes_on = bool(phrase.followers) and phrase.followers <= lexicon.parts
        if len(words) > 1 and not goes_on and (whole or (ends and words[0] not in lexicon.generic)):
            kept[text] = phrase.events
    merged: Counter[str] = Counter()
    for text, n in _without_parts(kept).items():
        merged[plural(text)] += n
    return merged


def _short_titles(found: Evidence) -> Counter[str]:
    """Titles that can stand in a list; also for a catalogue whose words the lexicon does not know."""
    return Counter({t.text: n for t, n in found.titles if 1 < len(t.text.split()) <= 5 and "," not in t.text})


def _lines(phrases: dict[str, _Phrase], lexicon: Lexicon) -> Counter[str]:
    """Product lines: one or two words that go with several kinds of product and name none."""
    kept: Counter[str] = Counter()
    for text, phrase in phrases.items():
        plain = len(phrase.words) <= 2 and not any(
            word in lexicon.generic or word in lexicon.parts for word in phrase.words
        )
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
    words = [word for word in stems(answer) if word not in PREPOSITIONS]
    if facet == "crowd":
        return any(stems(crowd) == stems(answer) for crowd in found.crowds)
    if facet == "categories" and any(stems(category) == stems(answer) for category in found.categories):
        return True
    if facet == "brands" and any(stems(brand) == stems(answer) for brand, _ in prompt.request.brands):
        return True
    return bool(words) and facet != "categories" and all(word in found.words for word in words)
