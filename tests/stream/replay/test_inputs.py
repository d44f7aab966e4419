import itertools
from dataclasses import replace

import numpy as np
import orjson
import pytest

from driftline.configs.settings import Settings
from driftline.graph.profile import Profile
from driftline.graph.view import FACETS
from driftline.llm.offline import requests_of_log
from driftline.llm.profile import FORMAT
from driftline.llm.request import read_request
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.inputs import catalogue_of, log_events, profile_sources, replay_profiles
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.report import profiles_line
from driftline.stream.state.store import MemoryStore

SETTINGS = Settings.model_validate({"profiles": {"first_events": 3, "refresh_events": 20}})


class Encoder:
    """One vector for every text."""

    def encode(self, texts):
        return np.ones((len(texts), 4), np.float32)


@pytest.fixture(scope="module")
def shop():
    return EventLog(read_columns(EVENTS, 2500), SETTINGS.action), read_items(ITEMS)


@pytest.fixture
def setup(shop, tmp_path):
    """A set-up with a profile file that answers every second request; some of its answers know too much."""
    log, items = shop
    path = tmp_path / "profiles.jsonl"
    lines = [orjson.dumps({"format": FORMAT})]
    for n, request in enumerate(requests_of_log(log_events(log), catalogue_of(items), SETTINGS)):
        if n % 2 == 0:
            as_of_ms = request.as_of_ms + (n % 10 == 0)
            facets = dict.fromkeys(FACETS, "lights")
            profile = Profile(request.user_id, facets, "", "llm:x", {}, request.version, as_of_ms, as_of_ms)
            lines.append(profile.to_json())
    path.write_bytes(b"\n".join(lines))
    return Setup(log, SETTINGS, items=items, profiles=path, shared={"encoder": Encoder()})


def test_the_sources_of_profiles_are_those_that_a_replay_reads(setup):
    log, profiles = setup.log, replay_profiles(setup)
    processor = Processor(SETTINGS, MemoryStore())
    read = []
    for number in range(log.groups):
        profile = profiles.at(log.user_ids[log.group_user[number]], int(log.group_t_ms[number]))
        read.append("none" if profile is None else {"llm:x": "file"}.get(profile.source, profile.source))
        changes = processor.apply([Record(e.offset, e) for e in map(log.event, log.rows_of(number).tolist())])
        processor.commit(changes)
        for out in changes.outgoing:
            if out.topic == "profile-requests":
                profiles.request(out.value)
    assert set(read) == {"file", "template", "none"}
    assert profile_sources(setup, np.arange(log.groups)) == read
    late = np.arange(log.groups // 2, log.groups)
    assert profile_sources(setup, late) == read[log.groups // 2 :]


def test_what_a_worker_asks_the_profiler_is_what_a_profile_file_answers(shop):
    log, items = shop
    catalogue, processor = catalogue_of(items), Processor(SETTINGS, MemoryStore())
    live = []
    for _, rows in itertools.groupby(range(len(log)), key=lambda row: log.t_ms[row]):
        changes = processor.apply([Record(e.offset, e) for e in map(log.event, rows)])
        processor.commit(changes)
        asked = [out.value for out in changes.outgoing if out.topic == "profile-requests"]
        live += [read_request(record, catalogue, SETTINGS.profiles) for record in asked]
    offline = list(requests_of_log(log_events(log), catalogue, SETTINGS))
    assert len(offline) > 20
    assert [replace(r, price_ratio=None) for r in live] == [replace(r, price_ratio=None) for r in offline]
    live_ratios, ratios = ([r.price_ratio or 0 for r in requests] for requests in (live, offline))
    np.testing.assert_allclose(
        live_ratios, ratios, atol=0.0011
    )  # rows hold prices as float32, and the last digit is rounded


def test_without_titles_nobody_has_a_profile(shop):
    assert profile_sources(Setup(shop[0], SETTINGS), np.arange(5)) == ["none"] * 5


def test_the_line_for_people_counts_each_source_and_takes_the_older_form():
    groups = {"file": 1200, "template": 30, "none": 4}
    assert profiles_line({"file": "shop.jsonl.gz", "groups": groups}) == (
        "shop.jsonl.gz; of 1,234 scored groups 1,200 had a profile of the file, 30 one of the template, 4 none"
    )
    assert profiles_line({"file": None, "groups": groups}).startswith("no file; ")
    assert profiles_line("shop.jsonl.gz") == "shop.jsonl.gz"
