"""What people see of the demo: bars, tables, and how to ask while it keeps running."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from driftline.stream.demo.newcomer import Newcomer
from driftline.stream.demo.parts import OVERRIDES
from driftline.stream.demo.probes import Sent, Serving
from driftline.stream.demo.scene import Scene

FOLDERS = ("_DIR", "_ROOT", "_SNAPSHOTS")
"""Ends of the names of settings that are folders."""
LINE_EVERY_S = 10.0
"""Between two lines where bars and live tables can't be drawn."""


@contextmanager
def history_bars(console: Console, total: int) -> Iterator[Callable[[int, int], tuple[int, int]]]:
    """Bars of the events applied and learnt; gives the function that moves them and returns what it was given."""
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task(name, total=total) for name in ("history applied to state", "history learnt")]

        began_s = spoken_s = time.monotonic()

        def move(applied: int, learnt: int) -> tuple[int, int]:
            nonlocal spoken_s
            if not console.is_terminal and time.monotonic() - spoken_s > LINE_EVERY_S:
                spoken_s = time.monotonic()
                left = (spoken_s - began_s) * (total - learnt) / learnt if learnt else 0.0
                rest = f", about {left:.0f} s left" if left else ""
                console.print(f"history: {applied:,} of {total:,} events applied to state, {learnt:,} learnt{rest}")
            progress.update(tasks[0], completed=applied)
            progress.update(tasks[1], completed=learnt)
            return applied, learnt

        yield move


class Picture:
    """The engine now: its lag, its model, and the latest customer who has a profile, or the latest one before there is.

    Args:
        serving: is asked.
        total: events that will be sent.
        scene: what is played.
    """

    def __init__(self, serving: Serving, total: int, scene: Scene) -> None:
        self._serving, self._total, self._scene = serving, total, scene
        self._user_id, self._has_profile = "", False

    def table(self, newest: Sent, n: int) -> Table:
        """As of the newest event, with `n` events sent."""
        serving = self._serving
        table = Table(title=f"{self._scene.live}, {n:,} of {self._total:,} events", min_width=86)
        table.add_column("what")
        table.add_column("now")
        info = serving.model()
        applied = serving.applied()
        table.add_row("events applied, lag", f"{applied:,}, {max(0, newest.offset + 1 - applied):,}")
        metric = {m.name: m.value for m in info.metrics}.get("ndcg@10", float("nan"))
        table.add_row("model", f"{info.provenance.model_version}, prequential NDCG@10 {metric:.3f}")
        if newest.offset >= 0:
            self._add_customer(table, newest)
        return table

    def _add_customer(self, table: Table, newest: Sent) -> None:
        serving, scene = self._serving, self._scene
        state = serving.state(newest.user_id, newest.t_ms).user_state
        if state.profile.text or not self._has_profile:
            self._user_id, self._has_profile = newest.user_id, bool(state.profile.text)
        else:
            state = serving.state(self._user_id, newest.t_ms).user_state
        domain = f", {state.domain}" if state.domain else ""
        table.add_row(f"{scene.user} {state.user_id}", escape(f"{state.counters.events} events{domain}"))
        last = named(scene, state.history.item_ids[:3], state.history.titles)
        table.add_row(f"  {scene.acted} last", escape(", ".join(last)))
        profile = f"{state.profile.text} ({state.profile.source})" if state.profile.text else "none yet"
        table.add_row("  profile", escape(profile))
        answer = serving.recommend(self._user_id, newest.t_ms + 1000)
        table.add_row(
            "  should see next", escape(", ".join(named(scene, answer.slate.item_ids[:4], answer.slate.titles)))
        )


def named(scene: Scene, item_ids: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Titles as people read them, ids where there are none."""
    return [scene.shown(title) if title else item_id for item_id, title in zip(item_ids, titles, strict=False)]


def show_purchase(
    console: Console, scene: Scene, customer: Any, item_id: str, title: str, before: Any, after: Any
) -> None:
    """Who buys which item, and the recommendations before and after; those that are new in the list are marked.

    Args:
        scene: what is played.
        customer: the `UserState` of who buys.
        title: of the item, "" = it has none.
        before, after: a `RecommendResponse` each.
    """
    domain = f" ({customer.domain})" if customer.domain else ""
    what = f"{scene.shown(title)} (item {item_id})" if title else f"item {item_id}"
    console.print(Text(f"{scene.user} {customer.user_id}{domain} {scene.acts} {what}", style="bold"))
    table = Table(caption=Text(f"{customer.profile.text} ({customer.profile.source})", style="table.caption"))
    table.add_column("")
    table.add_column("recommended before")
    table.add_column("recommended after")
    old = set(before.slate.item_ids)
    lists = [named(scene, answer.slate.item_ids, answer.slate.titles) for answer in (before, after)]
    for n, (a, b) in enumerate(zip(*lists, strict=False), 1):
        new = after.slate.item_ids[n - 1] not in old
        table.add_row(str(n), Text(a), Text(f"{b} (new)", style="green") if new else Text(b))
    console.print(table)


def show_newcomer(console: Console, scene: Scene, newcomer: Newcomer, similar: Any) -> None:
    """An item that hardly anybody has had yet, and what goes with it.

    Args:
        similar: a `SimilarItemsResponse`.
    """
    times = "once" if newcomer.count == 1 else f"{newcomer.count} times"
    first = datetime.fromtimestamp(newcomer.first_ms / 1000, UTC)
    said = f"{scene.shown(newcomer.title)} (item {newcomer.item_id})"
    console.print(Text(f"new: {said}, {scene.acted} {times}, first on {first:%d %B %Y}", style="bold"))
    console.print(Text(f"  goes with {', '.join(named(scene, similar.slate.item_ids, similar.slate.titles))}"))


def show_figures(console: Console, figures: Mapping[str, Any]) -> None:
    """The summary as a table."""
    table = Table(title="summary", show_header=False)
    for name, value in figures.items():
        if name == "request_time_ms":
            continue
        if isinstance(value, int | float):
            table.add_row(name.replace("_", " "), f"{value:,}")
        elif isinstance(value, dict) and "p50" in value:
            table.add_row(name.replace("_", " "), f"p50 {value['p50']}, p99 {value['p99']}")
    console.print(table)


def wait_for_interrupt(console: Console, user_id: str, item_id: str, now_ms: int) -> None:
    """Leaves everything running until Ctrl-C, and says how to ask, for a user and an item of the demo."""
    user, item = shlex.quote(user_id), shlex.quote(item_id)
    folders = {name: Path(value).absolute() for name, value in OVERRIDES.items() if name.endswith(FOLDERS)}
    ports = {name: value for name, value in OVERRIDES.items() if name.endswith("_PORT")}
    exports = [f"  export {name}={shlex.quote(str(value))}\n" for name, value in {**folders, **ports}.items()]
    console.print(
        f"everything keeps running; in another terminal:\n{''.join(exports)}"
        f"  driftline query user {user}\n  driftline recommend {user} -k 5 --at {now_ms}\n"
        f"  driftline similar {item}\n"
        "Ctrl-C ends it.",
        soft_wrap=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("ending")
