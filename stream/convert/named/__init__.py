"""Public data sets by name, as people download them, to files in the schema: one module each, and this registry.

None of them comes with driftline but the games; whoever uses one keeps to the licence of its owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from driftline.configs.errors import InputError
from driftline.stream.convert.named import games, messages, news, repository, songs
from driftline.stream.convert.named.made import Made, checked, write_made

__all__ = ["CONVERTERS", "Converter", "Made", "checked", "converter", "write_made"]


@dataclass(frozen=True, slots=True)
class Converter:
    """How one data set is read.

    Attributes:
        read: from what was downloaded to rows; raises InputError where it is something else.
        source: what is expected, for people.
        licence: under which it may be used.
    """

    read: Callable[[Path], Made]
    source: str
    licence: str


CONVERTERS = {
    "games": Converter(
        games.read,
        "a folder with playedgames.parquet and game_docs.parquet (github.com/ehenestroza/if-recommender, data/)",
        "CC BY 3.0 US (IFDB); descriptions may quote their games",
    ),
    "songs": Converter(
        songs.read,
        "sessions_sample_10.parquet.snappy of 30Music (github.com/RecoHut-Datasets/30music, branch v3)",
        "not stated; for research of your own",
    ),
    "news": Converter(
        news.read,
        "a folder with clicks_hour_*.csv, and articles_metadata.csv if there is one (Globo.com G1, on Kaggle as "
        "news-portal-user-interactions-by-globocom)",
        "academic use only, by its owner's terms",
    ),
    "messages": Converter(messages.read, "CollegeMsg.txt (snap.stanford.edu/data/CollegeMsg.html)", "not stated"),
    "git": Converter(repository.convert, "the folder of a git repository, bare or not", "that of the repository"),
}


def converter(name: str) -> Converter:
    """The converter of a data set.

    Raises:
        InputError: there is none of that name.
    """
    found = CONVERTERS.get(name)
    if found is None:
        raise InputError(
            f"got {name!r}; expected one of {', '.join(CONVERTERS)}; other files go through driftline import"
        )
    return found
