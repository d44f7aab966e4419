"""Titles of made-up items: words of their genre, so that a text encoder finds who belongs together."""

from __future__ import annotations

THINGS = (
    "kettle", "lantern", "novel", "jacket", "puzzle", "violin", "tent", "camera", "teapot", "carpet",
    "bicycle", "apron", "globe", "candle", "racket", "drill", "orchid", "perfume", "notebook", "speaker",
    "skillet", "telescope", "hammock", "kimono", "chessboard", "microscope", "saddle", "aquarium", "trowel", "guitar",
    "toaster", "mirror", "kayak", "typewriter", "pillow", "helmet", "blanket", "clock", "basket", "compass",
)  # fmt: skip
MATERIALS = (
    "oak",
    "copper",
    "linen",
    "glass",
    "leather",
    "bamboo",
    "wool",
    "ceramic",
    "steel",
    "paper",
    "cork",
    "silk",
)
LOOKS = ("small", "folding", "painted", "vintage", "striped", "plain", "heavy", "bright", "quiet", "sturdy", "slim")


def category_of(genre: int) -> str:
    """What items of a genre are called together."""
    round_, thing = divmod(genre, len(THINGS))
    return f"{THINGS[thing]}s" if round_ == 0 else f"{THINGS[thing]}s {round_ + 1}"


def title_of(genre: int, number: int) -> tuple[str, str]:
    """(title, category) of an item; titles need not be distinct."""
    look, material = LOOKS[number % len(LOOKS)], MATERIALS[number // len(LOOKS) % len(MATERIALS)]
    return f"{look} {material} {THINGS[genre % len(THINGS)]} no. {number}", category_of(genre)
