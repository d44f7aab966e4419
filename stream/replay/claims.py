"""All claims that docs/results.md makes of committed results, corrected together: Holm over the one family they are.

    python -m driftline.stream.replay.claims [FOLDER]

Reads the comparisons of FOLDER/*.json, default docs/results, and prints a line for each claim: lift, interval, p, p
after Holm's correction over all of them, and whether it holds at 5%.

A bootstrap p can't be below 2 / (draws + 1); where it stands there, it says how many draws were made and not how rare
the data are. There the p is that of a normal distribution of the logarithm of the ratio, as wide as the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from driftline.configs.errors import InputError
from driftline.stream.replay.intervals import holm

LISTS = ("novel", "repeat", "overall")
BEST = {"novel": "ease_recent", "repeat": "user_knn_recent", "overall": "personal_recency"}
LISTS_OF_GAMES = ("novel", "overall", "rare_items")
"""Hardly a game is played twice."""
BEST_OF_GAMES = {"novel": "user_knn_recent", "overall": "recent_popularity"}
LISTS_OF_SONGS = (("session", "hr@20"), ("session", "ndcg@20"), ("novel", "ndcg@10"), ("repeat", "ndcg@10"))
"""With their metrics."""
PARTS = ("hstu", "graph", "profiles")
LEVEL = 0.05
EARLIER_DRAWS = 2000
"""Of results that do not say how many."""
Z_OF_INTERVAL = 1.959964
"""Half a 95% interval, in deviations."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Arm `a` over arm `b` on a list of a result file, in the metric that is compared first where none is named."""

    file: str
    a: str
    b: str
    list: str
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A claim with its figures; `holds` = surely above or below 0 with all others."""

    claim: Claim
    lift: float
    ci: tuple[float, float]
    p: float
    p_holm: float

    @property
    def holds(self) -> bool:
        """Whether it survives the correction."""
        return self.p_holm < LEVEL


def published() -> list[Claim]:
    """Every cell of the tables of lifts in docs/results.md."""
    long, last, one = "split-50", "split-85", "one-seed-85"
    found = [Claim(file, "incremental", BEST[which], which) for file in (last, long) for which in LISTS]
    found += [Claim(last, "incremental", b, which) for b in ("hstu", "sasrec") for which in LISTS]
    found += [
        Claim(file, "incremental", b, which) for b in ("frozen", "ranker") for file in (last, long) for which in LISTS
    ]
    found += [Claim(one, "incremental", "retrain", which) for which in LISTS]  # its name then: now `weekly_frozen`
    found += [Claim("retrain-85", "incremental", "retrain", which) for which in LISTS]
    for part in PARTS:
        for file in (last, long):
            found += [Claim(file, f"ranker+{part}", "ranker", which) for which in LISTS]
            found.append(Claim(file, "incremental", f"incremental-{part}", "novel"))
    found += [
        Claim(one, "incremental", f"incremental:graph={kind}", which) for kind in ("random", "off") for which in LISTS
    ]
    games = [("games-85", b, which) for b in ("incremental:text=off", "incremental-labels") for which in LISTS_OF_GAMES]
    games += [("games-parts-85", f"incremental-{part}", which) for part in PARTS for which in LISTS_OF_GAMES]
    games += [("games-85", b, which) for which, b in BEST_OF_GAMES.items()]
    found += [Claim(file, "incremental", b, which) for file, b, which in games]
    songs = [("songs-85", "ranker+hstu", "ranker"), ("songs-copying-85", "hstu", "transitions")]
    songs += [("songs-85", "ranker", "transitions")]
    found += [Claim(*pair, *which) for pair in songs for which in LISTS_OF_SONGS]
    news = [("incremental", "incremental-hstu"), ("incremental", "transitions")]
    found += [Claim("news-36", *pair, "session", metric) for pair in news for metric in ("hr@20", "ndcg@20")]
    edits = [("own_pairs", "overall"), ("own_pairs", "repeat"), ("transitions", "novel")]
    found += [Claim("edits-85", "graph", *over) for over in edits]
    return found + [Claim("edits-parts-85", "ranker+graph", "ranker", which) for which in LISTS]


def corrected(folder: Path, claims: list[Claim]) -> list[Found]:
    """The claims with their p values, corrected as one family.

    Raises:
        InputError: a result file is not there, or does not have a claim's comparison.
    """
    results = {file: _read(folder / f"{file}.json") for file in dict.fromkeys(claim.file for claim in claims)}
    compared = [_comparison(results[claim.file], claim, folder) for claim in claims]
    p = [_p(results[claim.file], one) for claim, one in zip(claims, compared, strict=True)]
    return [
        Found(claim, one["lift"], tuple(one["ci"]), each, p_holm)
        for claim, one, each, p_holm in zip(claims, compared, p, holm(p), strict=True)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as metrics.json of a replay: {error}") from error
    return read


def _comparison(result: Mapping[str, Any], claim: Claim, folder: Path) -> Mapping[str, Any]:
    for one in result["comparisons"]:
        found = one["a"], one["b"], one["list"], claim.metric and one["metric"]
        if found == (claim.a, claim.b, claim.list, claim.metric):
            compared: Mapping[str, Any] = one
            return compared
    raise InputError(
        f"{folder / claim.file}.json has no comparison of {claim.a!r} with {claim.b!r} on {claim.list!r}; "
        "run the replay with both arms"
    )


def _p(result: Mapping[str, Any], one: Mapping[str, Any]) -> float:
    draws = result["protocol"].get("intervals", {}).get("resamples", EARLIER_DRAWS)
    p = float(one["p"])
    if p > 2.01 / (draws + 1):
        return p
    low, high = (math.log1p(end) for end in one["ci"])
    return min(p, math.erfc(abs(math.log1p(one["lift"])) / ((high - low) / (2 * Z_OF_INTERVAL)) / math.sqrt(2)))


def main(
    folder: Annotated[Path, typer.Argument(help="Of result files.")] = Path("docs/results"),
) -> None:
    """Print all claims."""
    found = corrected(folder, published())
    print(f"{len(found)} claims as one family")
    for one in found:
        c, (low, high) = one.claim, one.ci
        where = f"{c.list} {c.metric}".strip()
        line = f"{c.file:12} {c.a:18} over {c.b:24} {where:15} {one.lift:+7.1%} [{low:+.1%}, {high:+.1%}]"
        print(f"{line}  p {one.p:.2g}, corrected {one.p_holm:.2g}{'  holds' if one.holds else ''}")


if __name__ == "__main__":
    typer.run(main)
