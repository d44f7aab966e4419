"""The processor: one epoch of records in, changed rows and outgoing records out.

    records -> 1 validate -> 2 ours, and new? -> 3 late? -> 4 roll back -> 5 apply in (time, offset) order -> 6 changes

It is deterministic and knows nothing of Kafka, RocksDB or gRPC: a Faust agent, the trainer and the replay tool drive
the same object. The state after a record depends on the log up to it, never on how the log was cut into epochs.

Why a crash loses nothing: `Changes.puts` holds the changed rows, the next offset, the deduplication ids, the undo
records and the outgoing records not yet sent, and is committed as one batch. A restart opens the store, re-sends
what `unsent` lists and goes on at `next_offset`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter

import numpy as np

from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32, Int64
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, UserRow
from driftline.stream.events.records import Changes as Changes
from driftline.stream.events.records import Outgoing as Outgoing
from driftline.stream.events.records import Record as Record
from driftline.stream.events.records import dead_letter, pack, unpack
from driftline.stream.events.schema import InvalidEvent
from driftline.stream.process import endings
from driftline.stream.process.adopted import NEWEST, OLDER, AdoptedVersions, VersionOf, adoption, places_of
from driftline.stream.process.by_item import framed
from driftline.stream.process.forget import forgotten_user, to_items, tombstones, whose
from driftline.stream.process.intake import FOREIGN, Intake
from driftline.stream.process.known import KnownIds
from driftline.stream.process.late import LateWindow, Order, Undo, order_of
from driftline.stream.process.requests import due_requests
from driftline.stream.process.rows import Ended, Rows
from driftline.stream.process.ttl import spans, sweep_is_due
from driftline.stream.state.store import StateStore

RUN_EVENTS, RUNS = 512, 8
"""Events of one undo record, which a late event makes be applied again at least: so many, or of a large epoch one of
so many parts."""
NEW_FOR_AGAIN = 2
"""New events of an epoch, if so many wait, for each event that the epoch before applied again."""


class Processor:
    """State of one partition and the rule by which records change it.

    Args:
        settings: the whole configuration.
        store: where the partition's state lies; all but the users' rows is loaded.
        topic, partition: name the offset under which the state is committed.
        partitions: of `interactions`. With one, item rows live here; with more, each event goes on to
            `interactions.by-item`, and messages to users read the item vectors of the adopted item epoch.
        model: the graph version that the store adopted last; default is the seeded version 0.
        item_vectors: the item epoch that came with it, see `adopt`.
        version_of: weights and item epoch of an earlier version by sha256, for events that may be rolled back past an
            adoption; None = they can't be.
        versions_bytes: that earlier versions may take in memory; what is more is read again when a late event needs it,
            for which `version_of` has to know every version that was adopted; -1 = all stay.
        item_partitions: of `interactions.by-item`; 0 = as many as of `interactions`.
    """

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        topic: str = "interactions",
        partition: int = 0,
        partitions: int = 1,
        model: GraphMemory | None = None,
        item_vectors: dict[str, Float32] | None = None,
        version_of: VersionOf | None = None,
        versions_bytes: int = -1,
        item_partitions: int = 0,
    ) -> None:
        self.settings, self.store, self.partition = settings, store, partition
        self.local_items, self._ttl_ms = partitions == 1, settings.state.ttl_ms
        self._item_partitions = item_partitions or partitions
        self.rows = Rows(settings, store, self.local_items, model)
        self.graph, self.nodes, self.items = self.rows.graph, self.rows.users, self.rows.items
        self.intake = Intake(settings, partition, partitions)
        self.known = KnownIds(settings.state.dedupe_ids)
        self.window = LateWindow(settings.state.late_ms, settings.state.late_events)
        self.next_offset, self.too_late, self.forwarded = 0, 0, 0
        self.unsent: list[Outgoing] = []
        self.acknowledged = True
        self._sent_keys: list[bytes] = []
        self._topic, self._offset_key = topic, f"m:offset:{topic}:{partition}".encode()
        self.room = settings.state.epoch_events
        """Records that the next epoch may hold, if so many wait: more than usual while late events make each epoch
        apply many again, so that what is applied again stays a share of what is new."""
        self._load()
        if version_of is None and len(places_of(store)) > 1:  # what they would be needed for can't be applied again
            self.rows.pending |= dict.fromkeys(self.window.clear()) | {OLDER: None}
        self.versions = AdoptedVersions(self.rows, item_vectors, version_of, versions_bytes)

    # -- reading -----------------------------------------------------------------------------------------------

    def user(self, user_id: str, now_ms: int = -1) -> UserRow | None:
        """The current row of a user, as an event at `now_ms` would find it; None before the first event."""
        return self.nodes.find(user_id, now_ms)

    def validated(self, record: Record) -> Event:
        """The record as an event with its offset. Raises InvalidEvent if it is none."""
        return self.intake.validated(record)

    def is_known(self, event: Event) -> bool:
        """Whether an event of this id was applied within the remembered ones."""
        return event in self.known

    # -- one epoch ---------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Record]) -> Changes:
        """Applies one epoch in memory. Records below `next_offset` are dropped: they are in the state already."""
        self.intake.note_log(self.store)
        changes = Changes(next_offset=self.next_offset)
        fresh: list[Event] = []
        too_late: list[Event] = []
        leaving: dict[str, Order] = {}
        going: set[str] = set()  # items that may go with them, and that have counted what came too late
        validated, judge, several = self.intake.validated, self.window.judge, not self.intake.owns_all
        for record in records:
            if record.offset < self.next_offset:
                continue
            if self._ttl_ms and sweep_is_due(record.offset, self.next_offset):
                self._settle(fresh, too_late, changes)
                self._take_out(leaving, changes)
                endings.sweep(self.rows, self.window, changes)
                fresh, too_late, leaving, going = [], [], {}, set()
            self.next_offset = record.offset + 1
            try:
                event = validated(record)  # 1
            except InvalidEvent as refusal:
                if refusal.reason != FOREIGN and (user_id := forgotten_user(record)) is not None:
                    asked = Event(user_id, "", 0)
                    ours = self._is_ours(record, asked, changes)
                    # else there may be a part of the row, from before events were sent on to their owner
                    if ours or (self.intake.owner(asked) != self.partition and self.rows.has(user_id)):
                        self._settle(fresh, too_late, changes)
                        fresh, too_late = [], []
                        if not leaving:
                            self._drop_old()
                        leaving.setdefault(user_id, self.window.closed)
                        going.update(filter(self.items.has_too_late, self.window.items_of(user_id)))
                    if ours:
                        self._say_forgotten(user_id, record.offset, changes)
                        changes.outgoing += self.intake.to_others(record, user_id)
                    continue
                changes.outgoing.append(dead_letter(self._topic, self.partition, record, refusal))
                changes.dead += 1
                continue
            if (record.headers or several) and not self._is_ours(record, event, changes):  # 2
                continue
            if event.event_id and self.known.is_second(event, self.rows.pending):  # 2
                changes.duplicates += 1
                continue
            verdict = judge(event.timestamp_ms, event.offset)  # 3
            if leaving and (verdict == "too late" or event.user_id in leaving or event.item_id in going):
                self._settle(fresh, too_late, changes)  # such an event finds a row that must be gone by now
                self._take_out(leaving, changes)
                fresh, too_late, leaving, going = [], [], {}, set()
            match verdict:
                case "in order":
                    fresh.append(event)
                case "late":
                    fresh.append(event)
                    changes.late += 1
                case "too late":
                    too_late.append(event)
        self._settle(fresh, too_late, changes)
        self._take_out(leaving, changes)
        again = min(changes.again, self.settings.state.late_events)
        self.room = max(self.settings.state.epoch_events, NEW_FOR_AGAIN * again)
        self.forwarded += changes.forwarded
        return self._finish(changes)  # 6

    def _is_ours(self, record: Record, event: Event, changes: Changes) -> bool:
        """Whether a record is for this partition; one that is not goes on to the owner of its user, once."""
        if self.intake.is_ours(record, event):
            return True
        copy = self.intake.copy(record, event)
        if copy is None:
            changes.duplicates += 1
        else:
            changes.outgoing.append(copy)
            changes.forwarded += 1
        return False

    def _settle(self, fresh: list[Event], too_late: list[Event], changes: Changes) -> None:
        """Counts and applies events; `changes.late` says whether one among the fresh is late."""
        counted = self.rows.found_by(too_late, fresh) if too_late else None
        if fresh:
            self._apply_fresh(fresh, changes)
        if counted is not None:  # what changes nothing else
            self.rows.count_too_late(*counted)
            changes.too_late += len(too_late)
            self.too_late += len(too_late)

    def _apply_fresh(self, fresh: list[Event], changes: Changes) -> None:
        changes.applied += len(fresh)
        actions = self.settings.actions
        unknown = [event.action for event in fresh if event.action not in actions]
        changes.unknown_actions += len(unknown)
        changes.unknown_names |= frozenset(unknown)
        changes.below_zero |= {
            event.action
            for event in fresh
            if event.value is not None and event.value < 0 and self.settings.action(event.action).wanted(event.value)
        }
        before = self.nodes.events_of(list(dict.fromkeys([event.user_id for event in fresh])))
        ordered, top = fresh, -1
        if changes.late:  # 4
            before_them, top = self._undone(self.window.take_after(min(map(order_of, fresh))))
            ordered = sorted(before_them + fresh, key=order_of)
            changes.again += len(before_them)
        size = max(min(self.settings.state.epoch_events, RUN_EVENTS), len(fresh) // RUNS)
        memories: list[tuple[Int64, Float32]] = []
        ended = self._apply_in_order(ordered, top, size, memories, again=changes.late > 0)  # 5
        endings.count_anew(ended, fresh, before, self.settings, changes)
        if not self.local_items:
            # by offset, which is what tells the items' owner a second copy; what was applied again was sent before
            in_order = sorted(fresh, key=attrgetter("offset"))
            vectors = _memories_at([event.offset for event in in_order], memories)
            changes.outgoing += framed(self.partition, in_order, vectors, self._item_partitions, self.intake.log_id)
        changes.outgoing += due_requests(self.rows, before)

    def _drop_old(self) -> None:
        """Drops undo records that are no longer needed before somebody leaves: they may name rows that were swept.

        Not while somebody is leaving: the late window moves on meanwhile, and what was in it at the request is needed.
        """
        self.rows.pending |= dict.fromkeys(self.window.drop_old())

    def _take_out(self, leaving: Mapping[str, Order], changes: Changes) -> None:
        """Takes users out of rows and undo records, as if each had gone at the start of the late window: from their
        first event in undo records on, all is applied again without those events, of which time and offset stay.

        An epoch does it once for all whom it forgets, at its end, or before an event that would find a row which went
        with them.

        Without times to live somebody who has no row is in no undo record either; with them a row may have ended whose
        key is still in rings of items, which undo records hold. What lies before that first event, and what follows
        where there is none, has of a user no more than a place in such a ring. It is emptied there, which is the same
        before and after what others do.

        Args:
            leaving: by user, where the late window began at the request.
            changes: count what was applied again.
        """
        leaving = {user_id: at for user_id, at in leaving.items() if self._ttl_ms or self.rows.has(user_id)}
        if not leaving:
            return
        undone = self.window.take_from_first_of(leaving)
        events, top = self._undone(undone)
        rest, gone, touching = events, set[str](), list[Event]()
        for closed in sorted(set(leaving.values())):
            stay = [event for event in rest if order_of(event) <= closed]
            if stay:
                self.rows.pending |= dict.fromkeys(self.window.close(order_of(stay[-1])))
                touching += self._apply_again(stay, gone, top, keep=False)
                rest, top = rest[len(stay) :], max([top, *(event.offset for event in stay)])
            gone_here = {user_id for user_id, at in leaving.items() if at == closed}
            self.rows.forget(gone_here)
            gone |= gone_here
        for undo in self.window.empty_places(leaving):
            self.rows.pending[undo.store_key] = undo.encode()
        touching += self._apply_again(rest, gone, top)
        self.rows.settle_items([key for undo in undone for key in undo.before], touching)
        changes.again += len(events)

    def _apply_again(self, events: list[Event], gone: Collection[str], top: int, keep: bool = True) -> list[Event]:
        """Applies events in order; of users who are gone time and offset alone. What was applied."""
        applied = [event.nameless() if event.user_id in gone else event for event in events]
        self._apply_in_order(applied, top, RUN_EVENTS, [], again=True, keep=keep)
        return applied

    def _undone(self, taken: list[Undo]) -> tuple[list[Event], int]:
        """Puts back the rows from before some records; their events in order, and the first `Undo.top`."""
        for undo in reversed(taken):
            self.rows.pending[undo.store_key] = None
            self.rows.restore(undo.before)
        events = sorted([event for undo in taken for event in undo.events], key=order_of)
        return events, taken[0].top if taken else -1

    def _apply_in_order(
        self,
        ordered: list[Event],
        top: int,
        size: int,
        memories: list[tuple[Int64, Float32]],
        again: bool,
        keep: bool = True,
    ) -> list[Ended]:
        """Applies events in order, each with its version, in runs of a size.

        Args:
            ordered, top: see `AdoptedVersions.runs`.
            size: events of a run at most.
            memories: see `Rows.apply`.
            again: some of them were applied before, so offsets and times are not in one order.
            keep: undo records of them.
        """
        ended: list[Ended] = []
        for version, before_run, run in self.versions.runs(ordered, top):
            self.versions.use(version)
            for rows in (rows for n in range(0, len(run), size) for rows in spans(run[n : n + size], self._ttl_ms)):
                ended += self._apply_sorted(rows, memories, before_run, keep)
                before_run = max(before_run, *(event.offset for event in rows)) if again else -1
        self.versions.use(self.versions.newest)
        return ended

    def _apply_sorted(
        self, events: list[Event], memories: list[tuple[Int64, Float32]], top: int, keep: bool
    ) -> list[Ended]:
        """Applies events in order and keeps the rows from before for the late ones; see Undo and `Rows.apply`."""
        named = [event for event in events if event.user_id]
        undo = self.window.push(events, lambda: self.rows.before(named), top) if keep else None
        return self.rows.apply(named, memories, {} if undo is None else undo.before) if named else []

    def _finish(self, changes: Changes) -> Changes:
        """Offsets, watermark and outbox join the batch."""
        puts = self.rows.take_pending() | self.intake.take_pending()
        for key in self._sent_keys:
            puts[key] = None
        self._sent_keys = []
        for key in self.window.drop_old():
            puts[key] = None
        puts |= {undo.store_key: undo.encode() for undo in self.window.unsaved()}
        if len(self.versions) > 1 and self.versions.forget_before(self.window.first_needed):
            puts[OLDER] = self.versions.encode_older()
        if changes.outgoing:
            key = b"o:" + self.next_offset.to_bytes(8, "big")
            puts[key] = pack(changes.outgoing)
            self._sent_keys.append(key)
            self.acknowledged = False
        puts[self._offset_key] = b"%d" % self.next_offset
        puts[b"m:watermark"] = b"%d" % self.window.watermark_ms
        puts[b"m:late"] = self.window.encode()
        puts[b"m:too_late"] = b"%d" % self.too_late
        if changes.forwarded:
            puts[b"m:forwarded"] = b"%d" % self.forwarded
        changes.puts, changes.next_offset, changes.watermark_ms = puts, self.next_offset, self.window.watermark_ms
        return changes

    def commit(self, changes: Changes) -> None:
        """Writes an epoch: one batch, all or nothing."""
        self.store.commit(changes.puts)
        self.rows.committed()

    def clear_outbox(self) -> None:
        """Takes outgoing records out of the store if whoever sent them has set `acknowledged`; else they come again."""
        if self.acknowledged and self._sent_keys:
            self.store.commit(dict.fromkeys(self._sent_keys))
            self._sent_keys, self.unsent = [], []

    # -- what is not an event ----------------------------------------------------------------------------------

    def adopt(self, model: GraphMemory, item_vectors: dict[str, Float32] | None = None) -> Changes:
        """Adopts a graph version from `next_offset` on; commit the changes like an epoch's and send what says so.

        What a later arrival makes be applied again is applied with it, too: see `process.adopted`.

        Args:
            model: the trained weights.
            item_vectors: the item epoch that goes with them, [M] float32 by item id (several partitions only). It
                takes the place of the one before: an item that it does not name reads as zeros.
        """
        version = self.versions.adopt(self.next_offset, model, item_vectors)
        kept, said = adoption(version, self.partition, self.rows.values([NEWEST])[NEWEST])
        self.rows.pending[NEWEST] = kept
        return self._finish(Changes(next_offset=self.next_offset, outgoing=[said]))

    def forget(self, user_ids: Sequence[str]) -> Changes:
        """Forgets users at `next_offset`; commit the changes like an epoch's."""
        changes = Changes(next_offset=self.next_offset)
        for user_id in user_ids:
            self._say_forgotten(user_id, self.next_offset - 1, changes)
        self._drop_old()
        self._take_out(dict.fromkeys(user_ids, self.window.closed), changes)
        return self._finish(changes)

    def pass_to(self, offset: int) -> Changes:
        """Steps over offsets whose records are left out of the log; commit the changes like an epoch's."""
        changes = Changes()
        if self._ttl_ms and offset > self.next_offset and sweep_is_due(offset - 1, self.next_offset):
            endings.sweep(self.rows, self.window, changes)
        self.next_offset = max(self.next_offset, offset)
        return self._finish(changes)

    def step_over(self, record: Record) -> None:
        """Takes note that a record which is left out of the log was seen: a second copy of it is none to be applied."""
        self.intake.is_ours(record, Event(whose(record)[0] or "", "", 0))

    def _say_forgotten(self, user_id: str, offset: int, changes: Changes) -> None:
        """Counts a request at an offset; what ends the user's profile and takes the user out of other partitions."""
        changes.forgotten += 1
        changes.outgoing += tombstones(user_id)
        changes.outgoing += self.to_items(user_id, offset)

    def to_items(self, user_id: str, offset: int) -> Iterator[Outgoing]:
        """What takes a user out of the rings of items in other partitions, for a request at an offset of this one."""
        if not self.local_items:
            source = f"{self.partition}:{offset}:{self.intake.log_id}".encode()
            yield from to_items(user_id, self._item_partitions, source)

    # -- opening -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self.known.load(self.store)
        self.intake.load(self.store)
        meta = [self._offset_key, b"m:late", b"m:too_late", b"m:forwarded"]
        offset, late, too_late, forwarded = self.store.get(meta)
        self.next_offset, self.too_late, self.forwarded = int(offset or 0), int(too_late or 0), int(forwarded or 0)
        self.window.load(late, [Undo.decode(key, value) for key, value in self.store.scan(b"w:")])
        for key, value in self.store.scan(b"o:"):
            self.unsent += unpack(value)
            self._sent_keys.append(key)
        self.acknowledged = not self.unsent


def _memories_at(offsets: list[int], applied: list[tuple[Int64, Float32]]) -> Float32:
    """Memories [n, M] by offset, out of those of all events that were applied."""
    found = np.concatenate([at for at, _ in applied])
    order = np.argsort(found)
    vectors: Float32 = np.concatenate([memories for _, memories in applied])
    return vectors[order[np.searchsorted(found, offsets, sorter=order)]]
