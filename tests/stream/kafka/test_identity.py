"""A topic that was deleted and made anew is another log: refused, running or stopped, however long it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.stream.conftest import start
from tests.stream.test_app import by_item, shop_records

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.identity import Identities, Identity
from driftline.stream.kafka.reading import read_all
from driftline.stream.learn.loop import check_topic
from driftline.stream.ops.doctor import examine
from driftline.stream.state.origin import hold_to_origin, origin_of
from driftline.stream.state.store import MemoryStore

OLD, NEW = shop_records(40), shop_records(90, seed=5)


def make_anew(world: Any, name: str, records: Any = ()) -> None:
    """Deletes a topic and makes it again, longer than it was."""
    with admin(world.settings.broker, world.bootstrap) as client:
        client.delete_topics([world.prefix + name])
    if records:
        world.produce(records)
    else:
        world.create_topics()


@pytest.fixture
def identities(any_world: Any) -> Any:
    made = Identities(any_world.settings.broker, any_world.bootstrap)
    yield made
    made.close()


def test_the_same_topic_stays_itself_and_one_made_anew_is_another(
    any_world: Any, identities: Identities, wait: Any
) -> None:
    place = ("interactions", 0)

    def look(known: Identity | None = None) -> Identity:
        return identities.of([place], [known])[place]

    empty = look()
    any_world.produce(OLD)
    known = look(empty)
    assert not empty.differs(known)
    any_world.produce(OLD)
    assert look(known) == known
    for records in (NEW, OLD[:10]):  # longer, and the beginning of the same log
        make_anew(any_world, "interactions", records)
        assert known.differs(look(known))
        known = look()
    with admin(any_world.settings.broker, any_world.bootstrap) as client:
        client.delete_topics([any_world.prefix + "interactions"])
    wait(lambda: identities.of([place], [known]) == {}, what="the broker forgets the topic")


def test_a_worker_refuses_a_longer_topic_of_the_same_name_running_and_started_again_and_doctor_says_so(
    any_world: Any, wait: Any
) -> None:
    any_world.produce(OLD)
    with any_world.worker() as running:
        wait(lambda: running.applied() == len(OLD), what="the old topic is applied")
        assert not [f for f in examine(any_world.settings) if "made anew" in f.detail]
        make_anew(any_world, "interactions", NEW)
        assert running.process.wait(timeout=60) == StateError.exit_code, running.log.read_text()
    before = any_world.stored_rows()
    with any_world.worker() as again:
        assert again.process.wait(timeout=60) == StateError.exit_code, again.log.read_text()
    for word in ("was made from another topic", "state.root", "trainer.root", "serving.snapshots", "by-item"):
        assert word in again.log.read_text()
    assert any_world.stored_rows() == before
    assert [f.state for f in examine(any_world.settings) if "made anew" in f.detail] == ["bad"]


@pytest.mark.kafka
def test_a_running_worker_ends_with_73_when_the_topic_of_item_events_is_made_anew(kafka_world: Any, wait: Any) -> None:
    kafka_world.partitions = 2
    kafka_world.produce(OLD)
    with kafka_world.worker() as worker:
        wait(lambda: worker.applied() == len(OLD), what="everything is applied")
        wait(lambda: worker.items_applied() == len(by_item(kafka_world)) > 0, what="also by the items")
        make_anew(kafka_world, "interactions.by-item")
        assert worker.process.wait(timeout=40) == StateError.exit_code, worker.log.read_text()
        assert "another topic" in worker.log.read_text()
        assert "interactions.by-item (" in worker.log.read_text()


def test_a_trainer_goes_on_from_its_checkpoint_only_on_the_log_of_its_offsets(
    any_world: Any, identities: Identities, settings: Settings
) -> None:
    any_world.produce(OLD)
    trainer = start(settings)
    check_topic(trainer, identities)
    trainer.offsets[0] = len(list(read_all(any_world.settings.broker, any_world.bootstrap, "interactions")))
    trainer.checkpoint()
    check_topic(start(settings), identities)
    make_anew(any_world, "interactions", NEW)
    for later in (trainer, start(settings)):  # running, and started again
        with pytest.raises(StateError, match=r"the checkpoint in trainer\.root .* was made from another topic"):
            check_topic(later, identities)


def test_a_store_that_does_not_say_what_it_was_made_from_takes_the_log_that_is_there(tmp_path: Path) -> None:
    settings, store = Settings(), MemoryStore()
    hold_to_origin(settings, "a state", store, {"interactions": Identity()})
    assert origin_of(store) == {}
    hold_to_origin(settings, "a state", store, {"interactions": Identity("", 3, "5:ab")})
    hold_to_origin(settings, "a state", store, {})  # deleted: nothing is known of it
    hold_to_origin(settings, "a state", store, {"interactions": Identity("", 9, "7:cd")})  # the mark was deleted
    assert origin_of(store) == {"interactions": Identity("", 9, "7:cd")}
    hold_to_origin(settings, "a state", store, {"interactions": Identity("A", 9, "7:cd")})  # a broker that gives ids
    hold_to_origin(settings, "a state", store, {"interactions": Identity("", 12, "9:ef")})  # and one that does not
    with pytest.raises(StateError, match=r"topic id A\) than the broker has now \(topic id B\)"):
        hold_to_origin(settings, "a state", store, {"interactions": Identity("B")})
