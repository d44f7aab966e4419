"""The arms that can be named, with a line on each: what `replay --help`, reports and the registry read."""

from __future__ import annotations

import re

SIMPLE = {
    "popularity": "what is taken most, over all time",
    "recent_popularity": "what is taken most lately, counts halve in 3 weeks",
    "personal_recency": "what this user took often and lately, then what is popular",
    "item_knn": "items bought with those of the user's history, by cosine over baskets",
    "item_knn_recent": "as item_knn, times what is taken most lately, counts halve in 5 days",
    "user_knn_recent": "what the 100 most similar users took, newer purchases counting more",
    "ease_recent": "EASE, a linear item-item model in closed form, on baskets that fade, fitted anew each day",
    "transitions": "what followed the user's last item, counts halve in 3 weeks, then what is popular: for sessions",
}
"""Without learning on the stream, but for counts; all run where no arm is named."""
PAIRS = {
    "own_pairs": "those whom this user wrote to last",
    "reversed_pairs": "those who wrote to this user last, where users and items are the same people",
    "pairs": "both of these, the last first",
}
"""What a graph has to beat where users and items are the same people."""
ENGINE = {
    "hstu": "the HSTU sequence model alone, with the popularity in its softmax",
    "sasrec": "a SASRec transformer alone, in HSTU's place",
    "graph": "the graph alone: what its links count, and its trained memories",
    "graph:random": "the graph alone over memories that are not trained",
    "ranker": "the engine without HSTU, graph memory and profiles: counters and a small ranker",
    "ranker+hstu": "the ranker with HSTU",
    "ranker+graph": "the ranker with graph memory",
    "ranker+profiles": "the ranker with the users' profiles",
    "incremental-hstu": "the whole engine without HSTU",
    "incremental-graph": "the whole engine without graph memory",
    "incremental-profiles": "the whole engine without profiles",
    "incremental:graph=random": "the whole engine over a graph that is not trained",
    "incremental:graph=off": "the whole engine without graph memory anywhere",
    "incremental:hstu=placebo": "the whole engine, random vectors in place of HSTU's",
    "incremental:dynllm=off": "the whole engine without graph memory and profiles",
    "incremental:dynllm=placebo": "the whole engine, graph memory with profiles of somebody else",
    "incremental:dynllm=template": "the whole engine, graph memory with profiles from the template",
    "incremental:profiles=placebo": "the whole engine, each profile that of somebody else",
    "incremental:profiles=template": "the whole engine, all profiles from the template",
    "incremental:labels=on": "the whole engine, brands and categories counted by label (preset media has them on)",
    "incremental:text=off": "the whole engine, no item says anything",
    "incremental:text=placebo": "the whole engine, the text of each item that of another one",
    "incremental+noise": "the whole engine with a part of random numbers, which must change nothing",
    "frozen": "the whole engine, its weights fixed at the split",
    "weekly_frozen": "the whole engine as it learns live, fixed at the start of every week",
    "retrain": "the whole engine, trained offline before every week: shuffled epochs until its validation stops",
    "incremental": "the whole engine, learning as it runs live",
}
"""The engine and its parts.

`ranker` and `incremental` take any of them, as in ranker+hstu+graph, and any switch of `systems` in the settings, as in
incremental:hstu=off.
"""
PEERS = {
    "peer:implicit_als": "ALS of the library implicit; a user's vector is of what was taken until now",
    "peer:implicit_bm25": "item neighbours of the library implicit by BM25",
    "peer:lightgbm": "LightGBM's LambdaRank over plain counters",
    "peer:rectools_sasrec": "SASRec of RecTools; the user's sequence is live",
    "peer:rectools_hstu": "HSTU of RecTools; the user's sequence is live",
}
"""Of other makers, fitted anew every `peers.refit_days`, in an environment of their own: `driftline peers setup`."""
DEFAULT = (*SIMPLE, "hstu", "ranker", "frozen", "incremental")
"""Those that run where none are named."""


def about(name: str) -> str:
    """A line on an arm, also on one that is composed."""
    known = SIMPLE | PAIRS | ENGINE | PEERS
    if name in known:
        return known[name]
    base = re.split(r"[+:-]", name)[0]
    parts = re.findall(r"([+-])(\w+)", name)
    choices = re.findall(r":(\w+)=(\w+)", name)
    words = [known.get(base, base), *(("with " if sign == "+" else "without ") + part for sign, part in parts)]
    return ", ".join([*words, *(f"{what} {choice}" for what, choice in choices)])


def help_of_arms() -> str:
    """The arms as a list in Markdown, those that run by default with a star."""
    lines = (
        f"- `{name}`{' *' if name in DEFAULT else ''}: {text}"
        for of in (SIMPLE, PAIRS, ENGINE, PEERS)
        for name, text in of.items()
    )
    return "\n".join(("Arms; those with a star run where none are named:", "", *lines))
