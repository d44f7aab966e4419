"""`driftline query user`, `recommend`, `similar`: clients of the gRPC service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from configs.errors import ConfigError, ServingError
from configs.settings import Settings
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.proto.driftline.v1 import recommendation_pb2_grpc as pb_grpc
from stream.cli.common import AsJson, Config, out, parse_time, print_json, settings_of, when

Address = Annotated[str | None, typer.Option(help="host:port of the service; default from the settings.")]
Token = Annotated[str, typer.Option(envvar="DRIFTLINE_TOKEN", help="Bearer token.")]
At = Annotated[str | None, typer.Option(help="Request time: a date, a time or unix milliseconds; default now.")]
K = Annotated[int, typer.Option("-k", min=1, max=1000, help="Items wanted.")]
TIMEOUT_S = 10.0


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    queries = typer.Typer(no_args_is_help=True, help="What the service knows.")
    queries.command("user")(user)
    queries.command("model")(model)
    app.add_typer(queries, name="query")
    app.command()(recommend)
    app.command()(similar)


def user(
    user_id: Annotated[str, typer.Argument(help="Whose state.")],
    at: At = None,
    history: Annotated[int, typer.Option(min=1, max=65536, help="Newest events to show.")] = 10,
    address: Address = None,
    token: Token = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The state of a user as the stream left it: history, counters, profile, freshness.

    Example: `driftline query user 13085`
    """
    request = pb.GetUserStateRequest(user_id=user_id, request_time_ms=parse_time(at) or 0, history_limit=history)
    with service(settings_of(config), address, token) as call:
        answer = call("GetUserState", request)
    if as_json:
        return print_json(_plain(answer))
    state = answer.user_state
    if not state.known:
        return out.print(f"user {user_id}: no event yet (a cold-start answer is what `recommend` gives)")
    out.print(f"user {user_id}: {state.counters.events:,} events, last at {when(state.freshness.last_event_ms)}")
    if state.HasField("profile"):
        out.print(f"profile v{state.profile.version} by {state.profile.source}: {state.profile.text}")
    table = Table("when", "action", "item", "title")
    rows = zip(
        state.history.event_times_ms, state.history.actions, state.history.item_ids, state.history.titles, strict=True
    )
    for t_ms, action, item_id, title in rows:
        table.add_row(when(t_ms), action, item_id, title)
    out.print(table)
    return out.print(_origin(answer.provenance))


def model(address: Address = None, token: Token = "", config: Config = None, as_json: AsJson = False) -> None:
    """Which model serves, what it has learnt from and how good it was.

    Example: `driftline query model --json`
    """
    with service(settings_of(config), address, token) as call:
        answer = call("GetModelInfo", pb.GetModelInfoRequest())
    if as_json:
        return print_json(_plain(answer))
    out.print(f"model {answer.provenance.model_version or 'none yet'}, {answer.items:,} items")
    for metric in answer.metrics:
        out.print(f"  {metric.name} {metric.value:.4f}")
    if answer.refused_reason:
        out.print(f"  newest snapshot refused: {answer.refused_reason}")
    return None


def recommend(
    user_id: Annotated[str, typer.Argument(help="For whom.")],
    k: K = 10,
    at: At = None,
    which: Annotated[str, typer.Option("--list", help="overall, novel or repeat.")] = "overall",
    address: Address = None,
    token: Token = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What a user should see next, with reasons.

    Example: `driftline recommend 13085 -k 5 --list novel`
    """
    lists = {"overall": pb.SLATE_LIST_OVERALL, "novel": pb.SLATE_LIST_NOVEL, "repeat": pb.SLATE_LIST_REPEAT}
    if which not in lists:
        raise typer.BadParameter(f"got {which!r}; expected overall, novel or repeat", param_hint="--list")
    options = pb.SlateOptions(request_time_ms=parse_time(at) or 0, k=k, list=lists[which])
    with service(settings_of(config), address, token) as call:
        answer = call("Recommend", pb.RecommendRequest(user_id=user_id, options=options))
    _print_slate(answer, as_json)


def similar(
    item_id: Annotated[str, typer.Argument(help="Similar to which item.")],
    k: K = 10,
    address: Address = None,
    token: Token = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Items that go best with one item.

    Example: `driftline similar 85123A`
    """
    with service(settings_of(config), address, token) as call:
        answer = call("SimilarItems", pb.SimilarItemsRequest(item_id=item_id, k=k))
    _print_slate(answer, as_json)


@contextmanager
def service(settings: Settings, address: str | None, token: str) -> Iterator[Any]:
    """A function (method, request) -> answer.

    Raises:
        ServingError: the service can't be reached or refuses; says what the service said.
    """
    serving = settings.serving
    target = address or f"{'127.0.0.1' if serving.host == '0.0.0.0' else serving.host}:{serving.port}"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with _channel(settings, target) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)  # type: ignore[no-untyped-call]

        def call(method: str, request: Any) -> Any:
            try:
                return getattr(stub, method)(request, timeout=TIMEOUT_S, metadata=metadata)
            except grpc.RpcError as error:
                raise ServingError(_words(error, target)) from None

        yield call


def _channel(settings: Settings, target: str) -> grpc.Channel:
    certificate = settings.serving.tls_certificate
    if certificate is None:
        return grpc.insecure_channel(target)
    try:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate.read_bytes()))
    except OSError as error:
        raise ConfigError(f"serving.tls_certificate {certificate} can't be read: {error.strerror}") from None


def _words(error: Any, target: str) -> str:
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or ""):
        return f"no service answers at {target}; start `driftline serve`, or give --address"
    return f"{target} answered {code.name}: {error.details()}"


def _print_slate(answer: Any, as_json: bool) -> None:
    if as_json:
        return print_json(_plain(answer))
    table = Table("", "item", "title", "score", "why")
    slate = answer.slate
    for i, (item_id, title, score) in enumerate(zip(slate.item_ids, slate.titles, slate.scores, strict=True)):
        why = "; ".join(slate.item_reasons[i].reasons) if i < len(slate.item_reasons) else ""
        table.add_row(str(i + 1), item_id, title, f"{score:.3f}", why)
    out.print(table)
    return out.print(_origin(answer.provenance))


def _origin(provenance: Any) -> str:
    served = pb.ServedFrom.Name(provenance.served_from).removeprefix("SERVED_FROM_").lower()
    notes = f" ({', '.join(provenance.reasons)})" if provenance.reasons else ""
    return (
        f"from {served}{notes}, model {provenance.model_version or 'none'}, "
        f"user state {provenance.user_state_version}, watermark {when(provenance.watermark_ms)}"
    )


def _plain(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
