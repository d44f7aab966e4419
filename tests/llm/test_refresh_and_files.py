"""When profiles are due, the queue's budget, the requests of a log, and profile files."""

import gzip

import numpy as np
import pytest
from tests.llm.conftest import CATALOGUE, NOW_MS, shop_request

from driftline.configs.errors import InputError, MissingModelError
from driftline.configs.settings import Profiles, Settings
from driftline.graph.profile import parse_profile
from driftline.llm import refresh
from driftline.llm.client import TemplateClient
from driftline.llm.fetch import check_sum
from driftline.llm.generator import ProfileGenerator, generate_file
from driftline.llm.offline import LogEvent, plan, requests_of_log
from driftline.llm.profile import read_header, read_profiles
from driftline.llm.refresh import RequestQueue, due_version

DAY_MS = 86_400_000
POLICY = Profiles(first_events=10, refresh_events=50)


@pytest.mark.parametrize(
    ("before", "after", "version"),
    [(0, 9, 0), (9, 10, 1), (10, 59, 0), (59, 60, 2), (0, 160, 4), (10, 10, 0), (60, 109, 0), (105, 115, 3)],
)
def test_a_profile_is_due_at_the_first_events_and_after_every_refresh(before, after, version):
    assert due_version(before, after, POLICY) == version


def test_the_budget_of_a_minute_is_kept():
    queue = RequestQueue(Profiles(max_per_minute=6, batch=4))
    for i in range(20):
        queue.offer(shop_request(user_id=str(i)))
    assert [len(queue.take(now_s)) for now_s in (0, 0, 0, 9.9, 10, 30)] == [4, 2, 0, 0, 1, 2]


def test_a_full_queue_drops_the_longest_wait_and_counts_it():
    queue = RequestQueue(Profiles(queue=2))
    for user in "abc":
        queue.offer(shop_request(user_id=user))
    assert [r.user_id for r in queue.take(0)] == ["b", "c"]
    assert queue.dropped == 1


def test_a_newer_request_of_a_user_replaces_the_waiting_one_in_its_place():
    queue = RequestQueue(Profiles())
    for user, version in (("a", 1), ("b", 1), ("a", 2), ("a", 1)):
        queue.offer(shop_request(user_id=user, version=version))
    assert [(r.user_id, r.version) for r in queue.take(0)] == [("a", 2), ("b", 1)]
    assert queue.replaced == 2


def test_two_profiles_of_a_user_keep_their_interval_of_event_time():
    queue = RequestQueue(Profiles(min_interval_ms=DAY_MS))
    for as_of_ms, taken in ((NOW_MS, 1), (NOW_MS + DAY_MS - 1, 0), (NOW_MS + DAY_MS, 1)):
        queue.offer(shop_request(as_of_ms=as_of_ms))
        assert len(queue.take(0)) == taken
    assert queue.too_soon == 1


def test_users_that_may_have_a_new_profile_anyway_are_forgotten_past_a_bound(monkeypatch):
    monkeypatch.setattr(refresh, "REMEMBERED", 2)
    queue = RequestQueue(Profiles(min_interval_ms=DAY_MS))
    for user, as_of_ms in (("a", NOW_MS), ("b", NOW_MS + DAY_MS), ("c", NOW_MS + DAY_MS + 1)):
        queue.offer(shop_request(user_id=user, as_of_ms=as_of_ms))
        queue.take(0)
    for user, soon in (("a", 0), ("b", 1), ("c", 2)):
        queue.offer(shop_request(user_id=user, as_of_ms=NOW_MS + DAY_MS + 2))
        assert queue.too_soon == soon


def log_of(users: int, baskets: int):
    for basket in range(baskets):
        for user in range(users):
            t_ms = NOW_MS + (basket * users + user) * 60_000
            for item in "12345":
                yield LogEvent(f"u{user}", item, t_ms, "purchase", 6.0, 2.0 + user, "France")


def test_requests_of_a_log_do_not_change_when_later_events_are_deleted():
    settings = Settings(profiles=Profiles(first_events=10, refresh_events=10))
    events = list(log_of(3, 8))
    whole = list(requests_of_log(events, CATALOGUE, settings))
    for cut in (37, 60, 100):
        until_ms = events[cut].timestamp_ms
        part = list(requests_of_log([e for e in events if e.timestamp_ms < until_ms], CATALOGUE, settings))
        assert part == [r for r in whole if r.as_of_ms < until_ms]


def test_a_request_sees_the_whole_basket_that_fired_it():
    settings = Settings(profiles=Profiles(first_events=3, refresh_events=100))
    (request,) = requests_of_log(log_of(1, 1), CATALOGUE, settings)
    assert request.events == 5
    assert len(request.titles) == 5
    assert request.price_ratio == 1.0
    assert request.mean_value == 6.0


def test_returned_items_are_no_taste():
    settings = Settings.model_validate(
        {"profiles": {"first_events": 2}, "actions": {"purchase": {}, "return": {"weight": -1.0, "positive": False}}}
    )
    events = [
        LogEvent("u", "1", NOW_MS, "purchase", 1.0, 2.0, None),
        LogEvent("u", "8", NOW_MS + 1, "return", 1.0, 2.0, None),
    ]
    (request,) = requests_of_log(events, CATALOGUE, settings)
    assert request.titles == (("RED RETROSPOT CAKE STAND", 1),)
    assert dict(request.actions) == {"purchase": 1, "return": 1}


def test_the_plan_spends_a_budget_by_hash_and_time_alone():
    requests = [shop_request(user_id=f"u{u}", version=v, as_of_ms=v * DAY_MS) for v in range(1, 7) for u in range(20)]
    planned = plan(requests, from_ms=4 * DAY_MS, active_ms=2 * DAY_MS)
    first = planned[: 20 * 4]
    assert {r.version for r in first} == {3, 4, 5, 6}
    assert [r.version for r in planned[80:]] == [2] * 20 + [1] * 20
    assert len(planned) == len(requests)


@pytest.mark.parametrize("name", ["profiles.jsonl", "profiles.jsonl.gz"])
def test_a_profile_file_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path, name):
    requests = [shop_request(user_id=f"u{i}", items="12345"[i % 3 :]) for i in range(20)]
    whole, cut = tmp_path / "whole" / name, tmp_path / "cut" / name
    generator = ProfileGenerator(TemplateClient(), Profiles())
    assert generate_file(requests, whole, generator, batch=4) == 20
    polls = iter([False, False, True])
    assert generate_file(requests, cut, generator, batch=4, stop=lambda: next(polls)) == 8
    if name.endswith(".gz"):
        plain = cut.with_suffix("")
        plain.write_bytes(gzip.decompress(cut.read_bytes())[:-30])
    else:
        cut.write_bytes(cut.read_bytes()[:-30])
    assert generate_file(requests, cut, generator, batch=4) == 20
    assert sorted(p.to_json() for p in read_profiles(cut)) == sorted(p.to_json() for p in read_profiles(whole))
    assert read_header(cut)["prompt_sha256"] == generator.prompts.sha256


def test_a_file_holds_at_most_its_budget(tmp_path):
    generator = ProfileGenerator(TemplateClient(), Profiles())
    requests = [shop_request(user_id=f"u{i}") for i in range(9)]
    assert generate_file(requests, tmp_path / "p.jsonl", generator, batch=4, most=6) == 6
    assert len(read_profiles(tmp_path / "p.jsonl")) == 6


def test_a_file_of_another_prompt_is_not_continued(tmp_path):
    out = tmp_path / "p.jsonl"
    generate_file([shop_request()], out, ProfileGenerator(TemplateClient(), Profiles()), batch=1)
    with pytest.raises(InputError, match="was made with prompts 'ecommerce', this run has 'media'"):
        generate_file([shop_request()], out, ProfileGenerator(TemplateClient(), Profiles(prompts="media")), batch=1)


def test_a_profile_survives_its_record_with_its_vectors(minilm):
    profile = ProfileGenerator(TemplateClient(), Profiles(), minilm).generate([shop_request()])[0]
    back = parse_profile(profile.to_json())
    assert back.to_json() == profile.to_json()
    assert np.array_equal(back.vectors, profile.vectors)
    assert back.vectors.shape == (4, 384)


def test_vectors_of_a_file_equal_those_of_the_topic(minilm, tmp_path):
    generator = ProfileGenerator(TemplateClient(), Profiles(), minilm)
    generate_file([shop_request()], tmp_path / "p.jsonl", generator, batch=1)
    (read,) = read_profiles(tmp_path / "p.jsonl", minilm)
    assert np.array_equal(read.vectors, parse_profile(generator.generate([shop_request()])[0].to_json()).vectors)


def test_a_broken_line_is_named(tmp_path):
    out = tmp_path / "p.jsonl"
    generate_file([shop_request()], out, ProfileGenerator(TemplateClient(), Profiles()), batch=1)
    out.write_bytes(out.read_bytes() + b"{}\n")
    with pytest.raises(InputError, match=r"p\.jsonl:3: not a profile"):
        read_profiles(out)
    with pytest.raises(InputError, match=r"can't be read"):
        read_profiles(tmp_path / "none.jsonl")


def test_a_wheel_with_another_check_sum_is_refused(tmp_path):
    wheel = tmp_path / "model.whl"
    wheel.write_bytes(b"replaced")
    with pytest.raises(MissingModelError, match=r"model\.whl has sha256 .* expected 00"):
        check_sum(wheel, "00")
