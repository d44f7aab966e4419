"""What a replay is asked for and what it reads: files in, a log with its split, its candidates and its set-ups out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.stream.events.columns import Columns, without_duplicates
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.events.ids import Join
from driftline.stream.events.records import Record
from driftline.stream.events.schema import Item
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.log import NEVER_MS, EventLog
from driftline.stream.replay.protocol import Scope
from driftline.stream.replay.sessions import PROTOCOLS, Which

LOG = logging.getLogger(__name__)
CHOICES = (0.70, 0.85)
"""Shares of the positive rows between which all choices were made, where a user names no others: no figure that counts
is of this span. A split before it leaves it out; one within it looks at the span itself, as a choice does, and the
report says so."""
KEPT = ("texts", "encoder", "written", "encoding", "peers")
"""What arms of one replay share over all passes: text vectors, written profiles and what a process runs
depend on no log and no seed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `driftline replay` was asked for.

    Attributes:
        events, items: files in the event and item schema.
        out: folder for the report; created.
        arms: names, empty = the default ones.
        split: share of the positive rows that only warm up.
        candidates: "seen", or "items" = all available items whose valid_from_ms is not later, too.
        seeds: one run each for arms in which something is random.
        limit: first rows of the file to read.
        resume: take over results that lie in `out` for the same data, protocol and configuration.
        hold_out_items: share of items whose rows before the split are taken out, reported as `held_out_items`.
        profiles: file of profiles, valid from their time plus a fixed delay; None = the template.
        audit_rows: rows of the leak audit's short log, about; None = in proportion to the log, 0 = no audit.
        state_only: only the state of the log is wanted: no arm runs.
        adoptions: file of adoptions of graph versions (stream/replay/adoptions.py); the state follows them.
        records: the log that the adoptions belong to; None = the events file, a row's number is its offset.
        session: "next" or "last": which events of a session are asked for; "" = all groups, sessions or not.
        session_share: share of the sessions that are scored; all are learnt.
        learn_share: share of the groups that the engine's arms learn from, evenly spread; the others are only counted.
        choices: shares of the positive rows between which settings were chosen; equal ones = nothing was.
        command: the words that asked for it, for the report; "" = it was called by a program.
    """

    events: Path
    out: Path
    items: Path | None = None
    arms: Sequence[str] = ()
    split: float = 0.85
    candidates: str = "seen"
    seeds: Sequence[int] = (0,)
    limit: int | None = None
    resume: bool = False
    hold_out_items: float = 0.0
    profiles: Path | None = None
    audit_rows: int | None = None
    state_only: bool = False
    adoptions: Path | None = None
    records: Sequence[Record] | None = None
    session: Which = ""
    session_share: float = 1.0
    learn_share: float = 1.0
    choices: tuple[float, float] = CHOICES
    command: str = ""

    @property
    def usable_profiles(self) -> Path | None:
        """The profile file, None where it was written from rows that are held out."""
        return None if self.hold_out_items else self.profiles


@dataclass(frozen=True)
class Input:
    """What was read.

    Attributes:
        columns: rows that are learnt: those of held-out items before the split are taken out.
        log: the same as a log.
        items: what the items file says, by id.
        split_ms: where the warm-up ends.
        scope: what is scored past it; what lies in the span that choices were made on is left out.
        sha256: of the events file.
        duplicates: rows of it that have the event_id of an earlier one.
        log_of: a log of other rows by the same rules.
        learn_share: see Options.
        kept: see KEPT.
    """

    columns: Columns
    log: EventLog
    items: Mapping[str, Item]
    split_ms: int
    scope: Scope
    sha256: str
    duplicates: int
    log_of: Callable[[Columns], EventLog]
    learn_share: float = 1.0
    kept: dict[str, Any] = field(default_factory=dict)

    def setup(
        self,
        log: EventLog,
        settings: Settings,
        seed: int,
        profiles: Path | None,
        say: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Setup:
        """A fresh set-up for one pass; without a text to read, nothing has room for one."""
        if not self.has_text:
            settings = settings.model_copy(update={"ranker": settings.ranker.model_copy(update={"text_dim": 0})})
        return Setup(log, settings, seed, self.items, profiles, dict(self.kept), say, self.learn_share)

    @cached_property
    def has_text(self) -> bool:
        """Whether an item of the events says anything."""
        return any(self.items[name].description() for name in self.log.item_ids if name in self.items)

    def keep(self, setup: Setup) -> None:
        """Hand on to later passes what they may share."""
        self.kept.update({name: setup.shared[name] for name in KEPT if name in setup.shared})


def read(options: Options, settings: Settings) -> Input:
    """Reads the files.

    Raises:
        InputError: a file or the split is wrong, or candidates are to come from an items file that is not given.
    """
    if options.candidates == "items" and options.items is None:
        raise InputError(
            "candidates are to be those of an items file and none is given; add --items FILE, or take --candidates seen"
        )
    if options.session and options.session not in PROTOCOLS:
        raise InputError(f"got session {options.session!r}; expected {' or '.join(PROTOCOLS)}, or none")
    columns, duplicates = without_duplicates(read_columns(options.events, options.limit), settings.state.dedupe_ids)
    items = read_items(options.items) if options.items else {}
    if options.items is not None:
        _warn_of_items(options, columns, items)
    log = EventLog(columns, settings.action, ordered=settings.state.ordered)
    split_ms = log.split_ms(options.split)
    held_out: set[str] = set()
    if options.hold_out_items:
        rng = np.random.default_rng(options.seeds[0])
        chosen = rng.permutation(len(log.item_ids))[: round(options.hold_out_items * len(log.item_ids))]
        held_out = {log.item_ids[i] for i in chosen}
        columns = columns.take(np.flatnonzero(~(np.isin(log.item, chosen) & (log.t_ms < split_ms))))
    valid_from = dict.fromkeys(sorted(held_out), split_ms)
    if options.candidates == "items":
        valid_from |= {
            name: item.valid_from_ms
            for name, item in items.items()
            if item.valid_from_ms is not None and item.available and name not in held_out
        }

    def log_of(columns: Columns) -> EventLog:
        state, signals = settings.state, settings.signals
        rules = (valid_from or None, held_out, state.ordered, signals.context, signals.one_id_space)
        return EventLog(columns, settings.action, *rules)

    begin, end = options.choices
    until_ms = log.split_ms(end) if end < 1 else NEVER_MS
    left_out = (log.split_ms(begin), until_ms) if options.split < begin < end else None
    scope = Scope(left_out, options.session, options.session_share)
    digest = hashlib.sha256(options.events.read_bytes()).hexdigest()
    return Input(columns, log_of(columns), items, split_ms, scope, digest, duplicates, log_of, options.learn_share)


def _warn_of_items(options: Options, columns: Columns, items: Mapping[str, Item]) -> None:
    """Tells of an items file that does not belong to the events."""
    codes, names = columns.item_id
    rows = np.bincount(codes, minlength=len(names)).tolist()
    if problem := Join.of(dict(zip(names, rows, strict=True)), items).problem():
        LOG.warning("%s", problem)
