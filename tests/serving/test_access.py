"""Who may call what: scopes, a token file that changes, certificates of callers, and what the log says of all that."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

import grpc
import orjson
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kafka.errors import KafkaTimeoutError
from tests.serving.certificates import DAY, Authority
from tests.serving.conftest import small_settings

from driftline.client import CertificateError, Client, ClientError
from driftline.configs.errors import ConfigError
from driftline.configs.settings import Serving
from driftline.serving.access import PLAIN, SCOPES, Access, exposure
from driftline.serving.errors import NotReady
from driftline.serving.forget import Forgetter
from driftline.serving.metrics import ServingMetrics
from driftline.serving.server import SERVICE, Server
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

CODE = grpc.StatusCode
REQUESTS = {
    "GetUserState": pb.GetUserStateRequest(user_id="user-1"),
    "WatchUserState": pb.WatchUserStateRequest(user_id="user-1"),
    "Recommend": pb.RecommendRequest(user_id="user-1"),
    "RecommendBatch": pb.RecommendBatchRequest(user_ids=["user-1"]),
    "ScoreItems": pb.ScoreItemsRequest(user_id="user-1", item_ids=["item-1"]),
    "SimilarItems": pb.SimilarItemsRequest(item_id="item-1"),
    "GetModelInfo": pb.GetModelInfoRequest(),
}


def write(path: Path, *entries: dict[str, object], mode: int = 0o600) -> Path:
    path.write_bytes(orjson.dumps({"tokens": entries}))
    path.chmod(mode)
    return path


def entry(token: str, *scopes: str) -> dict[str, object]:
    return {"name": token, "token": token, "scopes": scopes}


def bearer(token: str):
    return (("authorization", f"Bearer {token}"),)


def code_of(channel, rpc: str, metadata=()) -> grpc.StatusCode:
    method = getattr(pb_grpc.RecommendationServiceStub(channel), rpc)
    try:
        answer = method(REQUESTS[rpc], metadata=metadata, timeout=10)
        if rpc == "WatchUserState":
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()
    return CODE.OK


def with_serving(settings, **update):
    return settings.model_copy(update={"serving": settings.serving.model_copy(update=update)})


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def reflected(channel, metadata) -> grpc.StatusCode:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    try:
        next(
            stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata
            )
        )
    except grpc.RpcError as error:
        return error.code()
    return CODE.OK


def test_every_call_of_the_service_has_a_scope_or_takes_any_token():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["RecommendationService"].methods}
    assert methods == set(SCOPES) | {"GetModelInfo"}
    assert set(SCOPES.values()) == {*PLAIN, "admin"}


def test_a_token_makes_the_calls_of_its_scopes_and_no_others(tmp_path, worker, settings, snapshot):
    hashed = {"sha256": hashlib.sha256(b"quiet").hexdigest(), "scopes": ["recommend"]}
    tokens = write(tmp_path / "tokens.json", entry("reader", "read_state"), entry("boss", "admin"), hashed)
    with (
        Server(with_serving(settings, token_file=tokens, tokens=("plain",))) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        scopes = {"reader": {"read_state"}, "boss": {"admin"}, "quiet": {"recommend"}, "plain": set(PLAIN)}
        for token, held in scopes.items():
            for rpc in REQUESTS:
                expected = CODE.OK if SCOPES.get(rpc) in {None, *held} else CODE.PERMISSION_DENIED
                assert code_of(channel, rpc, bearer(token)) == expected, (token, rpc)
            assert reflected(channel, bearer(token)) == CODE.OK
        for metadata in ((), bearer("other"), (("authorization", "reader"),), bearer(hashed["sha256"]), bearer("")):
            assert {code_of(channel, rpc, metadata) for rpc in REQUESTS} == {CODE.UNAUTHENTICATED}
            assert reflected(channel, metadata) == CODE.UNAUTHENTICATED
        both = (*bearer("boss"), *bearer("reader"))
        assert code_of(channel, "GetUserState", both) == CODE.OK
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        with Client(f"127.0.0.1:{server.port}", "reader") as client:
            assert client.user_state("user-1").user_state.known
            with pytest.raises(ClientError, match="Recommend needs scope recommend; this token has read_state"):
                client.recommend("user-1")


def test_refused_calls_are_counted_by_reason_and_logged_without_the_token(tmp_path, caplog):
    metrics = ServingMetrics()
    access = Access(Serving(token_file=write(tmp_path / "t", entry("reader-secret", "read_state"))), metrics)
    assert access.refusal("GetUserState", bearer("reader-secret")) is None
    for _ in range(3):
        assert access.refusal("Recommend", bearer("reader-secret")) is not None
    access._logged_s = 0.0
    assert access.refusal("Recommend", bearer("another-secret")) is not None
    access._logged_s = 0.0
    assert access.refusal("GetUserState", ()) is not None
    counted = {
        (sample.labels["rpc"], sample.labels["reason"]): sample.value
        for metric in metrics.refused_calls.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    expected = {("Recommend", "scope"): 3, ("Recommend", "unknown_token"): 1, ("GetUserState", "no_token"): 1}
    assert counted == expected
    lines = [record.getMessage() for record in caplog.records]
    digest = hashlib.sha256(b"reader-secret").hexdigest()
    assert lines[0] == f"refused Recommend: scope, sha256 of the token {digest[:8]}..."
    assert lines[1].endswith("; 2 more since the last line")
    assert len(lines) == 3
    assert "secret" not in caplog.text
    assert digest not in caplog.text


def test_the_token_file_is_followed_and_a_broken_one_changes_nothing(tmp_path, worker, settings, snapshot, caplog):
    caplog.set_level(logging.INFO)
    tokens = write(tmp_path / "tokens.json", entry("one", "read_state"))
    with (
        Server(with_serving(settings, token_file=tokens)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):

        def code(token: str) -> grpc.StatusCode:
            return code_of(channel, "GetUserState", bearer(token))

        def stale() -> float:
            return server.metrics.registry.get_sample_value("driftline_serving_stale_tokens")

        def put(content: bytes) -> None:
            """As an editor and a mounted secret do: whole at once."""
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(tokens)

        assert (code("one"), code("two")) == (CODE.OK, CODE.UNAUTHENTICATED)
        put(yaml.safe_dump({"tokens": [entry("two", "read_state")]}).encode())
        wait_for(lambda: code("two") == CODE.OK)
        assert code("one") == CODE.UNAUTHENTICATED
        for broken in (
            b"{",
            b"[]",
            b'{"tokens": [{"token": "x"}]}',
            b'{"tokens": [{"token": "", "scopes": ["admin"]}]}',
        ):
            put(broken)
            wait_for(lambda: stale() == 1)
            assert code("two") == CODE.OK
            put(yaml.safe_dump({"tokens": [entry("two", "read_state")]}).encode())
            wait_for(lambda: stale() == 0)
        tokens.unlink()
        wait_for(lambda: stale() == 1)
        assert code("two") == CODE.OK
        write(tokens)  # nobody
        wait_for(lambda: code("two") == CODE.UNAUTHENTICATED)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 5
    assert all("The tokens read before stay valid" in line for line in said)


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"{", b"[]", b"tokens: 7", b"tokens: [{scopes: [admin]}]",
        b"tokens: [{token: secret-x, scopes: []}]",
        b"tokens: [{token: secret-x, scopes: [all]}]", b"tokens: [{token: ' ', scopes: [admin]}]",
        b"tokens: [{sha256: secret-x, scopes: [admin]}]", b"tokens: [{token: secret-x, more: 1, scopes: [admin]}]",
        b"tokens: [!!python/object/apply:os.system [touch secret-x]]", b"\xff\xfe\xff", b"[" * 10_000,
    ],
)  # fmt: skip
def test_a_token_file_that_is_none_stops_the_start_with_a_sentence_and_shows_no_secret(tmp_path, content):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"serving\.token_file .* (can't be read|is not a token file)") as caught:
        Access(Serving(token_file=path), ServingMetrics())
    assert "secret-x" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_file_that_others_can_read_is_warned_of_unless_it_holds_no_secret(tmp_path, caplog):
    for mode, found in ((0o600, 0), (0o640, 1), (0o604, 1)):
        caplog.clear()
        Access(Serving(token_file=write(tmp_path / "t", entry("x", "admin"), mode=mode)), ServingMetrics())
        assert caplog.text.count("can be read by other users") == found
    caplog.clear()
    hashed = {"sha256": "0" * 64, "scopes": ["admin"]}
    Access(Serving(token_file=write(tmp_path / "t", hashed, mode=0o644)), ServingMetrics())
    assert caplog.text == ""


def test_without_tokens_everybody_may_call_but_for_admin():
    access = Access(Serving(), ServingMetrics())
    assert {access.refusal(rpc, ()) for rpc in (*REQUESTS, "ServerReflectionInfo")} == {None}
    assert "needs a token of scope admin" in str(access.refusal("ForgetUser", ()))
    assert "needs scope admin" in str(
        Access(Serving(tokens=("x",)), ServingMetrics()).refusal("ForgetUser", bearer("x"))
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "[::1]", "localhost"])
def test_on_loopback_nothing_is_exposed(host):
    assert exposure(Serving(host=host)) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.1.2.3", "shop.example"])
def test_what_other_machines_reach_without_token_or_without_tls_is_said(host, tmp_path):
    (open_to_all,) = exposure(Serving(host=host))
    assert "calls need no token" in open_to_all
    for tokens in ({"tokens": ("x",)}, {"token_file": tmp_path / "t"}):
        (unencrypted,) = exposure(Serving(host=host, **tokens))
        assert "tokens travel unencrypted" in unencrypted
        assert exposure(Serving(host=host, tls_certificate=tmp_path, tls_key=tmp_path, **tokens)) == []
    assert exposure(Serving(host=host, tls_certificate=tmp_path, tls_key=tmp_path, tls_client_ca=tmp_path)) == []


def test_with_a_client_authority_only_callers_with_its_certificate_are_answered(tmp_path, worker, settings, snapshot):
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    pem, key = ours.sign("server")
    guarded = with_serving(settings, tls_certificate=pem, tls_key=key, tls_client_ca=ours.certificate)
    good, stranger, old = ours.sign("caller"), theirs.sign("stranger"), ours.sign("old", lasts=-DAY)
    with Server(guarded) as server:
        address = f"127.0.0.1:{server.port}"

        def client(own: tuple[Path, Path] | None, trusted: Path = ours.certificate) -> Client:
            pair = {} if own is None else {"client_certificate": own[0], "client_key": own[1]}
            return Client(address, "", trusted, **pair)

        with client(good) as service:
            assert service.recommend("user-1").slate.item_ids
        for own in (None, stranger, old):
            with client(own) as service, pytest.raises(ClientError, match=r"did not agree on TLS|no driftline service"):
                service.recommend("user-1")
        with client(good, theirs.certificate) as service, pytest.raises(ClientError, match="did not agree on TLS"):
            service.recommend("user-1")
        with Client(address) as service, pytest.raises(ClientError):
            service.recommend("user-1")


def test_half_of_a_client_certificate_is_refused_in_a_sentence(tmp_path):
    authority = Authority(tmp_path)
    pem, key = authority.sign("caller")
    for pair in ({"client_certificate": pem}, {"client_key": key}):
        with pytest.raises(CertificateError, match="expected the caller's certificate with its key"):
            Client("127.0.0.1:1", "", authority.certificate, **pair)
    with pytest.raises(CertificateError, match="with them the certificate to trust"):
        Client("127.0.0.1:1", client_certificate=pem, client_key=key)
    with pytest.raises(CertificateError, match=r"none\.pem can't be read"):
        Client("127.0.0.1:1", "", authority.certificate, client_certificate=tmp_path / "none.pem", client_key=key)


def test_an_authority_that_is_none_is_a_config_error(tmp_path):
    pem, key = Authority(tmp_path).sign("server")
    for content in (None, "no PEM"):
        path = tmp_path / "authority-2.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=r"serving.tls_client_ca .*authority-2.pem can't be used"):
            Server(small_settings(tmp_path / "w", tls_certificate=pem, tls_key=key, tls_client_ca=path))
    with pytest.raises(ValueError, match="got tls_client_ca without tls_certificate"):
        small_settings(tmp_path / "w", tls_client_ca=pem)


def test_forget_user_takes_a_token_of_scope_admin_and_says_where_its_record_lies(
    tmp_path, worker, settings, snapshot, monkeypatch
):
    sent = []

    def forget(self, user_id):
        sent.append(user_id)
        return 3, 41

    monkeypatch.setattr(Forgetter, "forget", forget)
    tokens = write(tmp_path / "tokens.json", entry("boss", "admin"), entry("reader", *PLAIN))
    for guarded, token, words in (
        (settings, "", "needs a token of scope admin"),
        (with_serving(settings, token_file=tokens), "reader", "needs scope admin"),
    ):
        with (
            Server(guarded) as server,
            Client(f"127.0.0.1:{server.port}", token) as client,
            pytest.raises(ClientError, match=words),
        ):
            client.forget("user-1")
    with Server(guarded) as server, Client(f"127.0.0.1:{server.port}", "boss") as client:
        answer = client.forget("user-1")
        assert (answer.partition, answer.offset, sent) == (3, 41, ["user-1"])
        with pytest.raises(ClientError, match="user_id"):
            client.forget("x" * 257)
        assert len(sent) == 1


def test_forget_user_without_a_broker_is_unavailable_and_says_when_to_try_again(settings, monkeypatch):
    def refuse(self, timeout_ms):
        raise KafkaTimeoutError

    monkeypatch.setattr(Forgetter, "_connect", refuse)
    forgetter = Forgetter(settings.broker, "127.0.0.1:1")
    with pytest.raises(NotReady, match=r"the broker does not take the request.*try again in 1000 ms"):
        forgetter.forget("user-1")
    forgetter.close()


def test_who_gives_no_certificate_to_a_service_that_speaks_tls_is_told_of_tls(tmp_path, worker, settings, snapshot):
    ours = Authority(tmp_path / "ours")
    pem, key = ours.sign("server")
    for mutual in ({}, {"tls_client_ca": ours.certificate}):
        guarded = with_serving(settings, tls_certificate=pem, tls_key=key, **mutual)
        with Server(guarded) as server, Client(f"127.0.0.1:{server.port}", "secret") as service:
            for call in (service.model_info, lambda given=service: next(given.watch("user-1"))):
                with pytest.raises(ClientError, match=r"it speaks TLS.*certificate=\.\.\. of Client, --certificate"):
                    call()
    with Client(f"127.0.0.1:{server.port}") as nobody, pytest.raises(ClientError, match="no driftline service"):
        nobody.model_info()
    with (
        Server(settings) as plain,
        Client(f"127.0.0.1:{plain.port}", certificate=str(ours.certificate)) as service,
        pytest.raises(ClientError, match="did not agree on TLS"),
    ):
        service.model_info()


def test_files_of_tls_may_be_named_by_text_and_what_names_none_is_refused(tmp_path):
    ours = Authority(tmp_path)
    pem, key = ours.sign("caller")
    Client("127.0.0.1:1", "", str(ours.certificate), client_certificate=str(pem), client_key=str(key)).close()
    (tmp_path / "no.pem").write_text("none")
    for wrong in (5, b"...", pem.read_text(), "a\0b", str(tmp_path / "no.pem"), str(tmp_path)):
        with pytest.raises(CertificateError, match=r"expected the path of a PEM file|Expected the path|is no PEM file"):
            Client("127.0.0.1:1", certificate=wrong)


def test_no_token_and_an_unknown_one_are_told_apart_with_the_setting_that_lists_them(
    tmp_path, worker, settings, snapshot
):
    tokens = write(tmp_path / "tokens.json", entry("reader", "read_state"))
    for where, kept in (("serving.token_file", {"token_file": tokens}), ("serving.tokens", {"tokens": ("plain",)})):
        with Server(with_serving(settings, **kept)) as server:
            for token, told in (("", "no token was sent"), ("wrong-one", "token that was sent is not known here")):
                with Client(f"127.0.0.1:{server.port}", token) as client, pytest.raises(ClientError) as refused:
                    client.user_state("user-1")
                message = str(refused.value)
                assert all(part in message for part in (told, f"a token of {where};", "token=... of Client"))
                assert "wrong-one" not in message
