"""Names that somebody may have meant who wrote one that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

MEANT = "did_you_mean:"
"""Begins a reason of an answer that ends with a name."""
COMPARED = 2000
"""Names that are compared at most, a few milliseconds: of more, those that begin alike, the first of them."""
_LOOKED_AT = 50_000


def near(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The most similar of some names, whatever their case; [] = none is similar."""
    looked_at = list(islice(known, _LOOKED_AT))
    folded = name.casefold()
    if len(looked_at) > COMPARED:
        looked_at = [one for one in looked_at if one[:1].casefold() == folded[:1]][:COMPARED]
    by_form: dict[str, str] = {}
    for one in looked_at:
        by_form.setdefault(one.casefold(), one)
    return [by_form[form] for form in difflib.get_close_matches(folded, by_form, n)]


def meant(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Reasons with the names that are near to the first of some that nothing has."""
    return [f"{MEANT}{one}" for name in islice(names, 1) for one in near(name, known)]
