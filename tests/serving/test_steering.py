"""Lists that callers steer: a real server over a small shop whose items have categories, brands and prices."""

from __future__ import annotations

import math
from itertools import pairwise

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from tests.serving.conftest import ITEMS, Running, shop_events, small_settings
from tests.serving.test_service import detail

from driftline.configs.settings import Settings
from driftline.serving.arrays import item_part, unpack_strings
from driftline.serving.filters import Attributes, Filter
from driftline.serving.publish import publish
from driftline.serving.server import Server
from driftline.serving.spread import looked_at, spread
from driftline.v1 import recommendation_pb2 as pb

KINDS = ("lamps", "mugs", "bags")
"""Category of item n: KINDS[n % 3]; every item of an even number is also in "gifts"."""
BRANDS = ("Acme", "", "Zest", "")
DEAR = 1000.0
"""What the catalogue says that item 7 costs; events say 7. Of other items events alone say it."""
PRICES = {event.item_id: event.price for event in shop_events()} | {"item-7": DEAR}


def number(item_id):
    return int(item_id.split("-")[1])


def kinds(item_id):
    n = number(item_id)
    return {KINDS[n % 3]} | ({"gifts"} if n % 2 == 0 else set())


def with_attributes(parts):
    """The parts of a snapshot whose items have attributes."""
    ids = unpack_strings(parts["items"], "id")
    numbers = [number(item_id) for item_id in ids]
    items = item_part(
        ids,
        unpack_strings(parts["items"], "title"),
        ["home" if n < 40 else "garden" if n < 50 else "" for n in numbers],
        categories=[sorted(kinds(item_id)) for item_id in ids],
        brands=[BRANDS[n % 4] for n in numbers],
        prices=[DEAR if n == 7 else math.nan for n in numbers],
    )
    return {**parts, "items": items}


@pytest.fixture
def settings(tmp_path) -> Settings:
    """Recall so narrow that most items of the catalogue are in no pool."""
    base = small_settings(tmp_path).model_dump()
    base["ranker"] |= {"recall": 3, "newest": 2, "pool": 10, "personal": 5}
    return Settings.model_validate(base)


@pytest.fixture
def snapshot(settings, learnt):
    parts, meta = learnt
    return publish(settings.serving.snapshots, with_attributes(parts), meta)


def answers(running: Running, k=10, omit=False, **steering):
    """The answers of all calls that return a list, by name, with the same options."""
    options = pb.SlateOptions(k=k, omit_item_reasons=omit, **steering)
    stub = running.stub
    batch = stub.RecommendBatch(pb.RecommendBatchRequest(user_ids=["user-3", "nobody"], options=options))
    return {
        "recommend": stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)),
        "batch": batch.user_slates[0],
        "batch of nobody": batch.user_slates[1],
        "similar": stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-20", k=k, **steering)),
    }


@pytest.mark.parametrize(
    ("filter_fields", "passes"),
    [
        ({"categories": ["lamps"]}, lambda item: "lamps" in kinds(item)),
        ({"categories": ["lamps", "mugs"]}, lambda item: kinds(item) & {"lamps", "mugs"}),
        (
            {"categories": ["gifts"], "excluded_categories": ["lamps"]},
            lambda item: "gifts" in kinds(item) and "lamps" not in kinds(item),
        ),
        ({"brands": ["Acme"]}, lambda item: number(item) % 4 == 0),
        ({"excluded_brands": ["Acme", "Zest"]}, lambda item: number(item) % 2 == 1),
        ({"domains": ["garden"]}, lambda item: 40 <= number(item) < 50),
        ({"min_price": 30, "max_price": 44}, lambda item: 30 <= PRICES[item] <= 44),
        ({"min_price": 50}, lambda item: PRICES[item] >= 50),
        ({"max_price": 12}, lambda item: PRICES[item] <= 12),
        (
            {"categories": ["gifts"], "domains": ["home"], "max_price": 36.0},
            lambda item: number(item) % 2 == 0 and number(item) < 40 and PRICES[item] <= 36,
        ),
    ],
)
def test_every_list_holds_only_what_passes_its_filter_and_is_as_long_as_the_catalogue_lets_it(
    running, filter_fields, passes
):
    asked = pb.ItemFilter(**filter_fields)
    matching = {f"item-{n}" for n in range(ITEMS) if passes(f"item-{n}")}
    for name, answer in answers(running, k=8, filter=asked).items():
        ids = list(answer.slate.item_ids)
        assert set(ids) <= matching, name
        assert len(ids) == len(set(ids)) == 8, name
        assert not {"few_match", "unknown_category"} & set(answer.provenance.reasons), name
    for name, answer in answers(running, k=ITEMS, filter=asked).items():
        about = {"item-20"} if name == "similar" else set()
        assert set(answer.slate.item_ids) == matching - about, name
        assert "few_match" in answer.provenance.reasons, name


def test_what_is_filled_in_is_scored_by_the_model_and_says_why_it_is_there(running, worker):
    at_ms = worker.processor.window.watermark_ms + 1
    options = pb.SlateOptions(k=15, request_time_ms=at_ms, filter=pb.ItemFilter(categories=["bags"]))
    slate = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)).slate
    assert list(slate.scores) == sorted(slate.scores, reverse=True)
    asked = pb.ScoreItemsRequest(user_id="user-3", item_ids=slate.item_ids, request_time_ms=at_ms)
    assert list(running.stub.ScoreItems(asked).scores) == pytest.approx(list(slate.scores), abs=1e-4)
    reasons = [tuple(row.reasons) for row in slate.item_reasons]
    assert ("matches what you asked for",) in reasons
    assert len(set(reasons)) > 1


@pytest.mark.parametrize("which", [pb.SLATE_LIST_NOVEL, pb.SLATE_LIST_REPEAT])
def test_filling_keeps_to_the_list_that_was_asked_for(running, worker, which):
    state = running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", history_limit=1000)).user_state
    own = set(state.history.item_ids)
    asked = pb.ItemFilter(categories=["mugs"])
    options = pb.SlateOptions(k=ITEMS, list=which, filter=asked)
    ids = set(running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)).slate.item_ids)
    mugs = {f"item-{n}" for n in range(ITEMS) if n % 3 == 1}
    assert ids == (mugs & own if which == pb.SLATE_LIST_REPEAT else mugs - own)


def test_a_list_is_filled_where_exclusions_leave_it_short(running):
    everything = {f"item-{n}" for n in range(ITEMS)}
    first = list(answers(running, k=20)["recommend"].slate.item_ids)
    for name, answer in answers(running, k=10, excluded_item_ids=first).items():
        if name != "similar":  # fewer go with an item, and no filter asks for what does not
            assert len(answer.slate.item_ids) == 10, name
        assert set(answer.slate.item_ids) <= everything - set(first), name


@pytest.mark.parametrize(
    ("filter_fields", "reason", "near"),
    [
        ({"categories": ["lampz"]}, "unknown_category", "lamps"),
        ({"brands": ["acme"]}, "unknown_brand", "Acme"),
        ({"domains": ["moon"]}, "unknown_domain", ""),
    ],
)
def test_a_name_that_no_item_has_gives_an_empty_list_with_a_reason(running, filter_fields, reason, near):
    for name, answer in answers(running, filter=pb.ItemFilter(**filter_fields)).items():
        assert not answer.slate.item_ids, name
        assert {reason, "few_match"} <= set(answer.provenance.reasons), name
        assert (f"did_you_mean:{near}" in answer.provenance.reasons) is bool(near), name
    known = {key: [*values, {"categories": "lamps", "brands": "Acme", "domains": "home"}[key]]
             for key, values in filter_fields.items()}  # fmt: skip
    for name, answer in answers(running, filter=pb.ItemFilter(**known)).items():
        assert len(answer.slate.item_ids) == 10, name
        assert reason in answer.provenance.reasons, name


@pytest.mark.parametrize(
    ("steering", "field", "words"),
    [
        (
            {"filter": pb.ItemFilter(min_price=5, max_price=3)},
            "filter.min_price",
            "got 5, and max_price 3; .* swap them",
        ),
        ({"filter": pb.ItemFilter(min_price=-1)}, "filter.min_price", "got -1, expected 0 to"),
        ({"filter": pb.ItemFilter(max_price=math.nan)}, "filter.max_price", "got nan, expected 0 to .*; leave it out"),
        ({"filter": pb.ItemFilter(max_price=math.inf)}, "filter.max_price", "got inf, expected 0 to"),
        (
            {"filter": pb.ItemFilter(categories=["a"], excluded_categories=["a"])},
            "filter.excluded_categories",
            "got 'a', which categories has, too; expected it in one of them",
        ),
        ({"filter": pb.ItemFilter(brands=["x"] * 101)}, "filter.brands", "got 101 names, expected 100 at most"),
        ({"filter": pb.ItemFilter(domains=[""])}, "filter.domains[0]", "got 0 bytes, expected 1 to 1024"),
        ({"filter": pb.ItemFilter(categories=["x" * 1025])}, "filter.categories[0]", "got 1025 bytes"),
        ({"diversity": 1.5}, "diversity", "got 1.5, expected 0 to 1"),
        ({"diversity": math.nan}, "diversity", "got nan, expected 0 to 1"),
        ({"excluded_item_ids": ["x"] * 10_001}, "excluded_item_ids", "got 10001 ids, expected 0 to 10000"),
    ],
)
def test_options_that_can_not_hold_are_refused_by_every_list(running, steering, field, words):
    stub, options = running.stub, pb.SlateOptions(**steering)
    for call, prefix in (
        (lambda: stub.Recommend(pb.RecommendRequest(user_id="u", options=options)), "options."),
        (lambda: stub.RecommendBatch(pb.RecommendBatchRequest(user_ids=["u"], options=options)), "options."),
        (lambda: stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-1", **steering)), ""),
    ):
        with pytest.raises(grpc.RpcError, match=words) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        violations = detail(caught.value, error_details_pb2.BadRequest).field_violations
        assert prefix + field in {one.field for one in violations}


def test_options_are_those_of_the_request_where_the_ranking_comes_from_the_cache(running, worker):
    at_ms = worker.processor.window.watermark_ms + 1

    def ask(**options):
        asked = pb.SlateOptions(request_time_ms=at_ms, **options)
        return running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=asked))

    plain, lamps = ask(), pb.ItemFilter(categories=["lamps"])
    filtered, spread_out, again = ask(filter=lamps), ask(diversity=1.0), ask()
    assert [one.provenance.served_from for one in (filtered, spread_out, again)] == [pb.SERVED_FROM_CACHE] * 3
    assert all("lamps" in kinds(item) for item in filtered.slate.item_ids)
    assert list(spread_out.slate.item_ids) != list(plain.slate.item_ids)
    assert again.slate == plain.slate


def alike(item_ids):
    """Mean share of categories and brands that two neighbours of a list have in common."""
    sets = [kinds(item) | {BRANDS[number(item) % 4]} - {""} for item in item_ids]
    pairs = list(pairwise(sets))
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)


def test_more_diversity_brings_items_that_are_less_alike_and_keeps_the_best_one_first(running):
    for name in ("recommend", "batch", "similar"):
        lists = [
            list(answers(running, k=6, diversity=diversity, filter=pb.ItemFilter(min_price=0))[name].slate.item_ids)
            for diversity in (0.0, 1.0)
        ]
        plain, apart = lists
        assert plain[0] == apart[0], name
        assert len(set(apart)) == 6, name
        assert alike(apart) < alike(plain), name


def test_the_diversity_of_the_settings_holds_where_a_request_has_none(settings, worker, snapshot):
    serving = settings.serving.model_copy(update={"diversity": 1.0})
    request = pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(request_time_ms=2_000_000_000_000))
    told = {}
    for name, one in {"0": settings, "1": settings.model_copy(update={"serving": serving})}.items():
        with Server(one) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = Running(server, channel).stub
            told[name] = list(stub.Recommend(request).slate.item_ids)
            request.options.diversity = 0.0
            told[f"{name}, 0 asked for"] = list(stub.Recommend(request).slate.item_ids)
            request.options.ClearField("diversity")
    assert told["1"] != told["0"] == told["1, 0 asked for"] == told["0, 0 asked for"]


def test_a_filter_waits_for_a_snapshot_and_holds_for_what_answers_when_a_model_fails(
    settings, worker, learnt, monkeypatch
):
    options = pb.SlateOptions(k=5, filter=pb.ItemFilter(categories=["lamps"]))
    request = pb.RecommendRequest(user_id="user-3", options=options)
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = Running(server, channel).stub
        assert stub.Recommend(pb.RecommendRequest(user_id="user-3")).slate.item_ids
        with pytest.raises(grpc.RpcError, match="nothing is known of the items that a filter goes by") as caught:
            stub.Recommend(request)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    parts, meta = learnt
    publish(settings.serving.snapshots, with_attributes(parts), meta)
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:

        def fails(view, now_ms):
            raise RuntimeError("on purpose")

        monkeypatch.setattr(server.models.served.scorer, "rank", fails)
        answer = Running(server, channel).stub.Recommend(request)
        assert "model_error" in answer.provenance.reasons
        assert len(answer.slate.item_ids) == 5
        assert all("lamps" in kinds(item) for item in answer.slate.item_ids)


def test_a_snapshot_of_an_earlier_release_has_no_categories_and_its_events_prices(settings, worker, learnt):
    parts, meta = learnt
    names = [name for name in parts["items"] if name.startswith(("category", "brand", "price"))]
    items = {name: array for name, array in parts["items"].items() if name not in names}
    publish(settings.serving.snapshots, {**parts, "items": items}, meta)
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        running = Running(server, channel)
        cheap = answers(running, k=6, filter=pb.ItemFilter(max_price=20))["recommend"]
        assert len(cheap.slate.item_ids) == 6
        assert all(PRICES[item] <= 20 for item in cheap.slate.item_ids)
        lamps = answers(running, filter=pb.ItemFilter(categories=["lamps"]))["recommend"]
        assert (list(lamps.slate.item_ids), "unknown_category" in lamps.provenance.reasons) == ([], True)


def test_a_default_request_looks_at_no_attribute(running, monkeypatch):
    def fails(self, *_):
        raise AssertionError("looked at")

    for name in ("_passing", "labels"):
        monkeypatch.setattr(Attributes, name, fails)
    monkeypatch.setattr("driftline.serving.fill._others", fails)
    for answer in answers(running, k=5).values():
        assert "model_error" not in answer.provenance.reasons
        assert answer.slate.item_ids


def test_masks_are_those_of_each_item_alone():
    random = np.random.default_rng(0)
    n, names = 500, [f"c{i}" for i in range(12)]
    rows = [list(random.choice(names, random.integers(0, 4), replace=False)) for _ in range(n)]
    brands = [["", "A", "B"][random.integers(3)] for _ in range(n)]
    items = item_part([str(i) for i in range(n)], categories=rows, brands=brands)
    attributes = Attributes(items, np.zeros(0, np.float32), np.zeros(n, np.int32), {}, n)
    asked = Filter(categories=("c1", "c2"), excluded_categories=("c3",), excluded_brands=("A",))
    expected = [
        bool({"c1", "c2"} & set(row)) and "c3" not in row and brand != "A"
        for row, brand in zip(rows, brands, strict=True)
    ]
    assert attributes.passing(asked).mask.tolist() == expected
    labels = attributes.labels(np.arange(n, dtype=np.int32))
    sizes = [len(row) + bool(brand) for row, brand in zip(rows, brands, strict=True)]
    assert np.count_nonzero(labels, axis=1).tolist() == sizes
    np.testing.assert_allclose(np.linalg.norm(labels, axis=1), np.minimum(sizes, 1), rtol=1e-6)


def test_a_spread_list_alternates_between_two_kinds_and_without_diversity_goes_by_score():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    scores = np.linspace(1, 0, 10, dtype=np.float32)
    assert spread(vectors, scores, 4, 0.0).tolist() == [0, 1, 2, 3]
    kinds_of = [place // 5 for place in spread(vectors, scores, 2, 1.0).tolist()]
    assert sorted(kinds_of) == [0, 1]
    assert spread(vectors[:0], scores[:0], 4, 0.5).tolist() == []
    assert sorted(spread(vectors, scores, 100, 0.7).tolist()) == list(range(10))
    assert [looked_at(k) for k in (1, 10, 50, 1000, 2000)] == [100, 100, 200, 1000, 2000]


def test_an_item_of_which_nothing_is_known_is_neither_sought_nor_left_out_for_diversity():
    vectors = np.zeros((8, 2), np.float32)
    vectors[[0, 1, 2, 4, 5]] = [1, 0]
    vectors[6] = [0, 1]
    scores = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0], np.float32)  # of 3 and 7 nothing is known
    assert spread(vectors, scores, 2, 0.9).tolist() == [0, 6], "known to be unlike, not unknown"
    assert spread(vectors, scores, 6, 0.4).tolist() == [0, 6, 1, 2, 3, 4], "by its score where the others are alike"
    assert spread(vectors * 0, scores, 4, 0.9).tolist() == [0, 1, 2, 3]
