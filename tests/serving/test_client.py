"""The client and what the command line shows, against a real server."""

from __future__ import annotations

import io
import json

import orjson
import pytest
from rich.console import Console

from driftline.client import CertificateError, Client, ClientError, InvalidRequest, as_dict
from driftline.configs.addresses import free_port
from driftline.serving import show
from driftline.stream.cli.common import out
from driftline.v1 import recommendation_pb2 as pb


@pytest.fixture
def client(running):
    with Client(f"127.0.0.1:{running.server.port}") as made:
        yield made


def shown(renderable):
    out = io.StringIO()
    Console(file=out, width=140).print(renderable)
    return out.getvalue()


def test_each_call_of_the_client_answers(client, worker):
    assert client.user_state("user-3", history=2).user_state.known
    assert len(client.recommend("user-3", k=3, which="novel", excluded=["item-1"]).slate.item_ids) == 3
    assert len(client.recommend_batch(["user-1", "user-2"], k=2).user_slates) == 2
    assert len(client.score("user-3", ["item-1", "item-2"]).scores) == 2
    assert client.similar("item-5", k=2).slate.item_ids
    assert client.model_info().items == 60
    assert (client.health(), client.health("")) == ("SERVING", "SERVING")
    assert next(client.watch("user-3")).user_state.user_id == "user-3"


def test_a_state_is_shown_with_events_profile_and_freshness(client, running):
    record = {"user_id": "user-3", "facets": {"interests": "lamps"}, "text": "Likes lamps.", "version": 4}
    running.server.profiles.put(b"user-3", orjson.dumps({**record, "source": "template", "valid_from_ms": 1}))
    text = shown(show.user_state(client.user_state("user-3")))
    for part in ("user-3", "purchase", "Likes lamps.", "interests: lamps", "template, version 4", "memory", "2023-11"):
        assert part in text
    assert "recommendations are for a new user" in shown(show.user_state(client.user_state("nobody")))


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (47_400, "47.4 s"),
        (4_096_000_000, "47.4 d"),
        (86_390_000_000, "1,000 d"),
        (503_712_000_000, "5,830 d"),
    ],
)
def test_an_age_is_a_number_that_a_person_reads(ms, text):
    assert show.span(ms) == text


def test_a_slate_and_the_model_are_shown(client, snapshot):
    slate = client.recommend("user-3", k=4)
    text = shown(show.slate(slate))
    assert slate.slate.item_ids[0] in text
    assert slate.slate.item_reasons[0].reasons[0][:20] in text
    assert f"model {snapshot}" in text
    info = shown(show.model_info(client.model_info()))
    for part in (snapshot, "ndcg@10 0.2000", "interactions[0] 480"):
        assert part in info


def test_names_are_printed_as_they_are(client, capsys):
    state = client.user_state("user-3")
    state.user_state.history.item_ids[0] = "[b]i0"
    state.user_state.history.titles[0] = "[/b] :smile:"
    state.user_state.counters.actions[0].action = "[/i]"
    slate = client.recommend("user-3", k=2)
    slate.slate.item_ids[0] = "[b]i1"
    slate.slate.titles[0] = "[/b]x"
    out.print(show.user_state(state))
    out.print(show.slate(slate, "for user [/u]"))
    text = capsys.readouterr().out
    for part in ("[b]i0", "[/b] :smile:", "[/i]", "[b]i1", "[/b]x", "for user [/u]"):
        assert part in text


def test_answers_become_json_with_numbers_as_numbers(client):
    data = json.loads(json.dumps(as_dict(client.user_state("user-3", history=1))))
    assert data["provenance"]["served_from"] == "SERVED_FROM_MODEL"
    assert isinstance(data["user_state"]["history"]["event_times_ms"][0], int)
    assert isinstance(data["user_state"]["counters"]["events"], int)
    slate = as_dict(client.recommend("nobody", k=2))
    assert slate["provenance"]["user_state_version"] == 0
    assert isinstance(slate["slate"]["scores"][0], float)


def test_options_of_a_list_are_keyword_arguments_of_each_call(client, monkeypatch):
    asked = []
    monkeypatch.setattr(client, "_call", lambda request, kind: asked.append(request))
    steering = {
        "excluded": ["a", "b"],
        "domain": "home",
        "categories": ["lamps"],
        "excluded_categories": ["mugs"],
        "brands": ["Acme"],
        "excluded_brands": ["Zest"],
        "domains": ["garden"],
        "min_price": 0,
        "max_price": 9.5,
        "diversity": 0.5,
        "min_model_sequence": 1,
    }
    client.recommend("u", k=3, **steering)
    client.recommend_batch(["u"], k=3, **steering)
    client.similar("i", k=3, **steering)
    asked_filter = pb.ItemFilter(
        categories=["lamps"], excluded_categories=["mugs"], brands=["Acme"], excluded_brands=["Zest"],
        domains=["garden"], min_price=0, max_price=9.5,
    )  # fmt: skip
    for message in (asked[0].options, asked[1].options, asked[2]):
        assert message.filter == asked_filter
        assert (list(message.excluded_item_ids), message.domain) == (["a", "b"], "home")
        assert (message.k, message.diversity, message.min_model_sequence) == (3, 0.5, 1)
    client.similar("i")
    assert not asked[3].HasField("filter")
    assert not asked[3].HasField("diversity")
    with pytest.raises(TypeError, match="categoriez"):
        client.similar("i", categoriez=["lamps"])


def test_errors_say_what_to_do(client, running, tmp_path):
    with pytest.raises(InvalidRequest, match="user_id: got 0 bytes, expected 1 to 256"):
        client.recommend("")
    with pytest.raises(InvalidRequest, match="item 'none' is not known to model") as unknown:
        client.similar("none")
    with pytest.raises(ClientError, match="model sequence 1 serves, asked for 9") as older:
        client.recommend("user-1", min_model_sequence=9)
    assert (unknown.value.code, older.value.code) == ("NOT_FOUND", "UNAVAILABLE")
    with Client(f"127.0.0.1:{free_port()}") as nobody, pytest.raises(ClientError, match="driftline serve"):
        nobody.model_info()
    with pytest.raises(CertificateError, match=r"certificate .* can't be read"):
        Client("127.0.0.1:1", certificate=tmp_path / "no.pem")


def test_an_address_with_a_scheme_is_refused():
    with pytest.raises(InvalidRequest, match="address 5; expected host:port"):
        Client(5)
    with pytest.raises(InvalidRequest, match="expected host:port, without a scheme"):
        Client("http://127.0.0.1:50551")


def test_a_list_that_there_is_not_is_refused_in_words(client):
    with pytest.raises(InvalidRequest, match="list 'new'; expected overall, novel, repeat"):
        client.recommend("user-1", which="new")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.user_state("\ud800"), r"user_id '\\ud800' is not UTF-8; expected text without lone surrogates"),
        (lambda c: next(c.watch("a\udcff")), "user_id .* is not UTF-8"),
        (lambda c: c.recommend("\udfff"), "user_id .* is not UTF-8"),
        (lambda c: c.recommend("u", excluded=["ok", "\ud800"]), r"excluded_item_ids '\\ud800' is not UTF-8"),
        (lambda c: c.recommend("u", domain="\ud800"), "domain .* is not UTF-8"),
        (lambda c: c.recommend("u", categories="lamps"), r"categories is 'lamps' \(str\); expected a list of text"),
        (lambda c: c.similar("u", min_price="cheap"), r"min_price is 'cheap' \(str\); expected number"),
        (lambda c: c.similar("u", min_price=5, max_price=3), "filter.min_price: got 5, and max_price 3; expected"),
        (lambda c: c.recommend_batch(["u", "\ud800"]), "user_ids .* is not UTF-8"),
        (lambda c: c.score("u", ["\ud800"]), "item_ids .* is not UTF-8"),
        (lambda c: c.similar("\ud800"), "item_id .* is not UTF-8"),
        (lambda c: c.forget("\ud800"), "user_id .* is not UTF-8"),
        (lambda c: c.user_state(17850), r"user_id is 17850 \(int\); expected text"),
        (lambda c: c.user_state(None), "user_id: got 0 bytes, expected 1 to 256"),
        (lambda c: c.user_state(b"\xff"), "user_id is b'.*expected text"),
        (lambda c: c.recommend_batch("ann"), r"user_ids is 'ann' \(str\); expected a list of text"),
        (lambda c: c.score("u", [1, 2]), r"item_ids is \[1, 2\] \(list\); expected a list of text"),
        (lambda c: c.recommend("u", k=2**70), r"k is 1180\d+ \(int\); expected whole number"),
        (lambda c: c.recommend("u", k=0), "k is 0; expected 1 to 1000"),
        (lambda c: c.recommend_batch(["u"], k=-1), "k is -1; expected 1 to 1000"),
        (lambda c: c.similar("item-5", k=0), "k is 0; expected 1 to 1000"),
        (lambda c: c.recommend("u", k="ten"), r"k is 'ten' \(str\); expected whole number"),
        (lambda c: c.user_state("u" * 257), "user_id: got 257 bytes, expected 1 to 256"),
        (lambda c: c.user_state("é" * 129), "user_id: got 258 bytes, expected 1 to 256"),
        (lambda c: c.similar(""), "item_id: got 0 bytes, expected 1 to 256"),
        (lambda c: c.recommend("u" * 10_000_000), "."),
    ],
)
def test_what_can_t_be_asked_is_refused_with_what_was_received_and_what_is_expected(client, call, words):
    with pytest.raises(ClientError, match=words) as refused:
        call(client)
    assert len(str(refused.value)) < 600


def test_an_id_may_have_any_character_of_unicode(client):
    for user_id in ("\0", "a\0b", "\uffff", "\U0010ffff", "a\nb", "\u202e"):
        assert client.user_state(user_id).user_state.user_id == user_id


@pytest.mark.parametrize("token", ["secret\n", "se cret", "\ud800", "sécret", b"secret"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token):
    with pytest.raises(CertificateError, match="expected one line of visible ASCII characters") as refused:
        Client("127.0.0.1:1", token=token)
    assert "cret" not in str(refused.value)
