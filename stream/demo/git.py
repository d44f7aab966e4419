"""`driftline demo --git PATH`: a repository of the visitor's own, and which files its authors will touch next.

    1 read the history; what fits none of it, say so       4 ask before each of the last commits, then send it
    2 start broker, worker, trainer, serve                 5 count hits, beside those of plain recency
    3 load the older commits in bulk                       6 which files the busiest authors should look at next

No profiles are written: no language model knows people by the files that they change. Files are listed as they are
known at a commit: renamed, deleted and new ones are sent as items with it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaProducer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from driftline.configs.errors import InputError
from driftline.configs.security import producer_options
from driftline.graph.rows import Event
from driftline.serving.scratch import Scratch
from driftline.stream.convert.named.made import Made, write_made
from driftline.stream.convert.named.repository import ACTIONS, Commit, events_of, history, items_of, words_of
from driftline.stream.demo import Demo, staged
from driftline.stream.demo.figures import check_facts
from driftline.stream.demo.probes import Sender
from driftline.stream.demo.scene import Scene
from driftline.stream.demo.show import show_figures, wait_for_interrupt
from driftline.stream.events.schema import Item, encode_event, encode_item

K = 10
LIVE = 300
"""Commits that are predicted at most; a quarter of all where there are fewer."""
FEWEST = 40
"""Commits below which nothing can be learnt."""
AUTHORS = 3
BOT = "[bot]"


@dataclass(slots=True)
class Known:
    """What is known of the files at a commit, and what plain recency would say.

    Attributes:
        paths: by id, as of the newest change.
        gone: ids of files that are deleted.
        recent: files by author, "" = of anybody, the newest change last.
    """

    paths: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    recent: dict[str, dict[str, None]] = field(default_factory=lambda: {"": {}})

    def learn(self, commit: Commit) -> list[str]:
        """Takes a commit; the files of which something new must be said: path, existence."""
        told = []
        for change in commit.changes:
            gone = change.action == "delete"
            if self.paths.get(change.item_id) != change.path or gone != (change.item_id in self.gone):
                told.append(change.item_id)
            self.paths[change.item_id] = change.path
            (self.gone.add if gone else self.gone.discard)(change.item_id)
            if not commit.sweeping:
                for of in ("", commit.author):
                    files = self.recent.setdefault(of, {})
                    files.pop(change.item_id, None)
                    files[change.item_id] = None
        return told

    def is_fair(self, commit: Commit) -> bool:
        """Whether a commit can be predicted: of a person seen before, with a file seen before."""
        return (
            not commit.sweeping
            and not commit.author.endswith(BOT)
            and commit.author in self.recent
            and any(change.item_id in self.recent[""] for change in commit.changes)
        )

    def recency(self, author: str) -> list[str]:
        """The files that an author changed last, then those that anybody did."""
        files = dict.fromkeys([*reversed(self.recent.get(author, {})), *reversed(self.recent[""])])
        return [item_id for item_id in files if item_id not in self.gone][:K]

    def item(self, item_id: str) -> Item:
        """A file as it is listed."""
        path = self.paths[item_id]
        return Item(item_id, path, words_of(path), available=item_id not in self.gone)


@dataclass(slots=True)
class Score:
    """Hits of one way to predict: commits with a file in the first ten, and the share of their known files there."""

    hits: int = 0
    found: float = 0.0

    def add(self, listed: Sequence[str], wanted: set[str]) -> bool:
        """Counts one commit; whether it was hit."""
        there = len(wanted & set(listed[:K]))
        self.hits += there > 0
        self.found += there / min(K, len(wanted))
        return there > 0


@dataclass(slots=True)
class Scores:
    """What was counted over the last commits.

    Attributes:
        commits: that could be predicted.
        alone: commits that one of both hit and the other did not.
    """

    commits: int = 0
    engine: Score = field(default_factory=Score)
    recency: Score = field(default_factory=Score)
    alone: dict[str, int] = field(default_factory=lambda: {"driftline": 0, "recency": 0})

    def add(self, engine: Sequence[str], recency: Sequence[str], wanted: set[str]) -> None:
        """Counts one commit with what both list for it."""
        self.commits += 1
        a, b = self.engine.add(engine, wanted), self.recency.add(recency, wanted)
        self.alone["driftline"] += a and not b
        self.alone["recency"] += b and not a

    def figures(self) -> dict[str, Any]:
        """As shares."""
        n = max(self.commits, 1)
        return {
            "commits_predicted": self.commits,
            "hit_rate": {"driftline": round(self.engine.hits / n, 3), "recency": round(self.recency.hits / n, 3)},
            "share_found": {"driftline": round(self.engine.found / n, 3), "recency": round(self.recency.found / n, 3)},
            "hit_alone": self.alone,
        }


def run_git_demo(path: Path, limit: int, keep: bool, seconds: float) -> dict[str, Any]:
    """Plays a repository; returns the figures.

    Args:
        path: of the repository.
        limit: newest commits that are read at most.
        keep: leave everything running until Ctrl-C.
        seconds: wall time of the predicted commits.

    Raises:
        InputError: it is no repository, or has too few commits.
        DemoError: another demo runs, or a part failed.
    """
    started_s = time.monotonic()
    found = history(path, limit)
    for note in found.notes:
        Console(stderr=True, highlight=False, markup=False).print(f"note: {note}", soft_wrap=True)
    events = [commit for commit in found.commits if not commit.sweeping and commit.changes]
    if len(events) < FEWEST:
        raise InputError(
            f"{path}: got {len(events)} commits that change files; expected at least {FEWEST} to learn from"
        )
    since_ms = events[-min(LIVE, len(events) // 4)].t_ms
    past = [commit for commit in found.commits if commit.t_ms < since_ms]
    live = [commit for commit in found.commits if commit.t_ms >= since_ms]
    if not len(events_of(past)):
        raise InputError(f"{path}: got commits of one time only; expected some that are older than the last ones")
    known = Known()
    for commit in past:
        known.learn(commit)
    with Scratch("commits") as folder:
        scene = _scene(folder, past, known)
        with staged(scene) as demo:
            total = len(events_of(past))
            authors, files = len(known.recent) - 1, len(known.paths) - len(known.gone)
            said = f"{path}: {len(past):,} commits of {authors:,} authors to {files:,} files; then {len(live):,} more"
            demo.console.print(Text(said), soft_wrap=True)
            demo.load(since_ms, total)
            scores, sent = foretell(demo, live, known, seconds)
            now_ms = live[-1].t_ms + 60_000
            upcoming = _next_files(demo, live, known, now_ms)
            figures = {
                **demo.counted(started_s),
                **scores.figures(),
                "next": {author: [known.paths[item_id] for item_id in ids] for author, ids in upcoming.items()},
            }
            show_scores(demo.console, scores, len(live))
            show_next(demo.console, figures["next"])
            show_figures(demo.console, figures)
            check_facts(
                {
                    f"all {total + sent:,} events were applied": figures["events_applied"] == total + sent,
                    "no event went to the dead-letter topic": figures["dlq"] == 0,
                    "serving adopted a snapshot": figures["snapshots"] >= 1,
                    "files were listed for every author": all(figures["next"].values()),
                },
                figures,
            )
            if keep:
                author = next(iter(upcoming))
                wait_for_interrupt(demo.console, author, upcoming[author][0], now_ms)
            demo.parts.stop()
    return figures


def _scene(folder: Path, past: Sequence[Commit], known: Known) -> Scene:
    """The older commits as files, with the files of the repository as they were after them."""
    made = Made(events_of(past), items_of(known.paths, frozenset(known.gone)), actions=ACTIONS)
    events, items, config = write_made(made, folder)
    return Scene(
        events, items, str(config), 0, "the last commits", "author", "changes", "changed", "edit", profiles=False,
        settings={"DRIFTLINE__TRAINER__CATCH_UP_SHARE": "1.0"},
    )  # fmt: skip


def foretell(demo: Demo, live: Sequence[Commit], known: Known, seconds: float) -> tuple[Scores, int]:
    """Asks for the files of each commit before it is sent; what was hit, and the events sent."""
    scores, sent, after = Scores(), 0, demo.serving.applied()
    topic = demo.settings.broker.prefix + "items"
    started = time.monotonic()
    with (
        closing(Sender(demo.settings.broker, demo.bootstrap)) as sender,
        closing(KafkaProducer(**producer_options(demo.settings.broker, demo.bootstrap))) as listing,
    ):
        for n, commit in enumerate(_watched(demo.console, live)):
            time.sleep(max(started + seconds * n / len(live) - time.monotonic(), 0))
            if known.is_fair(commit):
                demo.wait_applied(after)
                wanted = {change.item_id for change in commit.changes if change.item_id in known.recent[""]}
                slate = demo.serving.recommend(commit.author, commit.t_ms).slate
                scores.add(list(slate.item_ids), known.recency(commit.author), wanted)
            for item_id in known.learn(commit):
                listing.send(topic, key=item_id.encode(), value=encode_item(known.item(item_id)))
            for change in () if commit.sweeping else commit.changes:
                event = Event(commit.author, change.item_id, commit.t_ms, change.action, group_id=commit.sha)
                sender.send(commit.author.encode(), encode_event(event))
                sent, after = sent + 1, after + 1
            if n % 20 == 0:
                demo.check()
        sender.flush()
        listing.flush()
        demo.wait_learnt(after)
    return scores, sent


def _watched(console: Console, live: Sequence[Commit]) -> Iterator[Commit]:
    return iter(track(live, "commits predicted, sent", console=console, disable=not console.is_terminal))


def _next_files(demo: Demo, live: Sequence[Commit], known: Known, now_ms: int) -> dict[str, list[str]]:
    """The files for the people who committed most of late, of those that exist."""
    busiest = Counter(c.author for c in live if not c.sweeping and not c.author.endswith(BOT)).most_common(AUTHORS)
    return {author: list(demo.serving.recommend(author, now_ms).slate.item_ids) for author, _ in busiest}


def show_scores(console: Console, scores: Scores, commits: int) -> None:
    """What was hit, beside plain recency.

    Args:
        commits: that were sent, those that could not be predicted included.
    """
    title = f"{scores.commits:,} of the last {commits:,} commits, each predicted before it was sent"
    table = Table(title=title, min_width=60)
    for name in ("", f"a file of it in the first {K}", "of its known files"):
        table.add_column(name)
    for name, score in (
        ("driftline", scores.engine),
        ("recency: own files last changed, then anybody's", scores.recency),
    ):
        n = max(scores.commits, 1)
        table.add_row(name, f"{score.hits / n:.1%}", f"{score.found / n:.1%}")
    console.print(table)
    alone = scores.alone
    console.print(
        "Counted are commits of people seen before, not bots, with a known file: one that an earlier commit changed. "
        f"{alone['driftline']} were hit by driftline alone, {alone['recency']} by recency alone.",
        soft_wrap=True,
    )
    if scores.engine.found <= scores.recency.found:
        console.print("Plain recency does as well here: this history is short, or its work goes on file by file.")


def show_next(console: Console, upcoming: Mapping[str, Sequence[str]]) -> None:
    """The files that each author is likely to change next."""
    table = Table(title="likely to be changed next")
    for author in upcoming:
        table.add_column(Text(_plain(author)), overflow="fold")
    for row in range(max(map(len, upcoming.values()), default=0)):
        table.add_row(*(Text(_plain(paths[row]) if row < len(paths) else "") for paths in upcoming.values()))
    console.print(table)


def _plain(text: str) -> str:
    """A name on one line, whatever is in it."""
    return text if text.isprintable() else repr(text)[1:-1]
