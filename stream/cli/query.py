"""`driftline query user|model|health|forget`, `recommend`, `similar`, `score`, `watch`: every RPC as a command."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from google.protobuf.message import Message

from driftline.client import Client, Steering, Which, as_dict
from driftline.serving import show
from driftline.serving.local import client_of
from driftline.stream.cli.common import AsJson, Config, err, out, parse_time, print_json, settings_of, when
from driftline.stream.cli.composed import Maker, composed

Address = Annotated[str | None, typer.Option(help="host:port of the service; default from the settings.")]
Token = Annotated[str, typer.Option(envvar="DRIFTLINE_TOKEN", help="Bearer token.")]
Trusted = Annotated[
    Path | None,
    typer.Option(
        envvar="DRIFTLINE_CERTIFICATE", help="PEM file of the certificate to trust; default from the settings."
    ),
]
Own = Annotated[
    Path | None,
    typer.Option(
        envvar="DRIFTLINE_CLIENT_CERTIFICATE", help="PEM file of your own certificate, where it is asked for."
    ),
]
OwnKey = Annotated[Path | None, typer.Option(envvar="DRIFTLINE_CLIENT_KEY", help="PEM file of its key.")]
At = Annotated[
    int | None,
    typer.Option(
        parser=parse_time,
        metavar="TIME",
        help="Request time: a date, a time (UTC unless it names a zone) or unix milliseconds; default now, or the end "
        "of a stream of long ago.",
    ),
]
K = Annotated[int, typer.Option("-k", min=1, max=1000, help="Items wanted.")]
LISTS = ("overall", "novel", "repeat")
List = Annotated[str, typer.Option("--list", help="overall, novel (nothing that the user had) or repeat.")]
NOT_SERVING_EXIT = 76
HISTORY_MS = 30 * 86_400_000
"""A stream whose newest event is older than this is history: now, nothing of it would be recent."""
Answer = TypeVar("Answer", bound=Message)
Excluded = Annotated[
    list[str] | None, typer.Option("--exclude", help="Id of an item never to return; may be given several times.")
]
Category = Annotated[
    list[str] | None, typer.Option("--category", help="Only items in this category; may be given several times.")
]
NoCategory = Annotated[
    list[str] | None, typer.Option("--exclude-category", help="No items in this category; may be given several times.")
]
Brand = Annotated[
    list[str] | None, typer.Option("--brand", help="Only items of this brand; may be given several times.")
]
NoBrand = Annotated[
    list[str] | None, typer.Option("--exclude-brand", help="No items of this brand; may be given several times.")
]
Domain = Annotated[
    list[str] | None,
    typer.Option("--domain", help="Only items that have this market, scene or shop; may be given several times."),
]

Context = Annotated[
    list[str] | None,
    typer.Option("--context", metavar="NAME=VALUE", help="How the request is made; may be given several times."),
]

Newest = Annotated[int, typer.Option(min=1, max=65536, help="Newest events to show.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    makers: dict[str, Maker] = {"service": client, "steering": steering}
    of_queries: tuple[Maker, ...] = (user, model, health, forget)
    of_app: tuple[Maker, ...] = (recommend, similar, score, watch)
    queries = typer.Typer(no_args_is_help=True, help="What the service knows.")
    for command in of_queries:
        queries.command(command.__name__)(composed(command, makers))
    app.add_typer(queries, name="query")
    for command in of_app:
        app.command()(composed(command, makers))


def user(
    user_id: Annotated[str, typer.Argument(help="Whose state.")],
    *,
    at: At = None,
    history: Newest = 10,
    watch: Annotated[bool, typer.Option("--watch", help="Again after each change, until Ctrl-C.")] = False,
    service: Client,
    as_json: AsJson = False,
) -> None:
    """The state of a user as the stream left it: history, counters, profile, freshness.

    Example: `driftline query user 13085`, `driftline query user 13085 --watch --json`
    """
    if watch:
        if at is not None:
            raise typer.BadParameter("got --at and --watch; expected one of them: what is watched is now")
        return _watch(user_id, history, service, as_json)
    with service:
        one, time_of = asked(lambda at_ms: service.user_state(user_id, history, at_ms), at)
    return print_json(as_dict(one) | time_of) if as_json else out.print(show.user_state(one, history))


def watch(
    user_id: Annotated[str, typer.Argument(help="Whose state.")],
    *,
    history: Newest = 10,
    service: Client,
    as_json: AsJson = False,
) -> None:
    """The state of a user now and after each change, until Ctrl-C or SIGTERM; with --json a line each.

    Example: `driftline watch 13085 --history 3 --json`
    """
    _watch(user_id, history, service, as_json)


def _watch(user_id: str, history: int, service: Client, as_json: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which a shell's background jobs ignore
    with service, suppress(KeyboardInterrupt):  # it is the way to end it
        for answer in service.watch(user_id, history):
            print_json(as_dict(answer)) if as_json else out.print(show.user_state(answer, history))


def model(service: Client, as_json: AsJson = False) -> None:
    """Which model serves, what it has learnt from, how good it was, and how far behind it is.

    Example: `driftline query model --json`
    """
    with service:
        answer = service.model_info()
    return print_json(as_dict(answer)) if as_json else out.print(show.model_info(answer))


def health(service: Client, as_json: AsJson = False) -> None:
    """Whether the service has anything to answer from; exit code 76 if not.

    Example: `driftline query health --address 127.0.0.1:50551`
    """
    with service:
        status = service.health()
    print_json({"status": status}) if as_json else out.print(status)
    if status != "SERVING":
        raise typer.Exit(NOT_SERVING_EXIT)


def forget(
    user_id: Annotated[str, typer.Argument(help="Who is to be forgotten.")], service: Client, as_json: AsJson = False
) -> None:
    """Ask the service to forget a user, with a token of scope admin. `driftline forget` asks the broker, and waits.

    Example: `driftline query forget 13085 --token "$ADMIN_TOKEN"`
    """
    with service:
        answer = service.forget(user_id)
    if as_json:
        print_json({"user_id": user_id, **as_dict(answer)})
    else:
        out.print(
            f"the request to forget {user_id} is in partition {answer.partition} at offset {answer.offset:,}; "
            "the user's state goes when a worker reads it",
            soft_wrap=True,
        )


def recommend(
    user_ids: Annotated[list[str], typer.Argument(metavar="USER_ID...", help="For whom; several in one call.")],
    *,
    k: K = 10,
    at: At = None,
    which: List = "overall",
    context: Context = None,
    steering: Steering,
    service: Client,
    as_json: AsJson = False,
) -> None:
    """What users should see next, with reasons.

    Example: `driftline recommend 13085 -k 5 --list novel`,
    `driftline recommend 13085 13089 --category "gift bags" --max-price 5 --exclude 84991 --diversity 0.4 --json`
    """
    chosen, given = list_of(which), context_of(context)
    with service:
        if len(user_ids) == 1:
            one, time_of = asked(
                lambda at_ms: service.recommend(user_ids[0], k, chosen, at_ms, context=given, **steering), at
            )
            if as_json:
                return print_json(as_dict(one) | time_of)
            return out.print(show.slate(one, f"for user {user_ids[0]}"))
        batch, time_of = asked(
            lambda at_ms: service.recommend_batch(user_ids, k, at_ms, chosen, context=given, **steering), at
        )
    if as_json:
        return print_json(as_dict(batch) | time_of)
    for slate in batch.user_slates:
        out.print(show.slate(slate, f"for user {slate.user_id}"))
    return None


def similar(
    item_id: Annotated[str, typer.Argument(help="Similar to which item.")],
    *,
    k: K = 10,
    steering: Steering,
    service: Client,
    as_json: AsJson = False,
) -> None:
    """Items that go best with one item.

    Example: `driftline similar 85123A`, `driftline similar 85123A --exclude-brand Acme --min-price 2 --json`
    """
    with service:
        answer = service.similar(item_id, k, **steering)
    return print_json(as_dict(answer)) if as_json else out.print(show.slate(answer, f"with item {item_id}"))


def score(
    user_id: Annotated[str, typer.Argument(help="For whom.")],
    item_ids: Annotated[list[str], typer.Argument(metavar="ITEM_ID...", help="Which items.")],
    *,
    at: At = None,
    which: List = "overall",
    context: Context = None,
    service: Client,
    as_json: AsJson = False,
) -> None:
    """Scores of items that you choose, the best first; those that the model does not know are named.

    Example: `driftline score 13085 84991 21212 no-such-item --json`
    """
    with service:
        chosen, given = list_of(which), context_of(context)
        answer, time_of = asked(lambda at_ms: service.score(user_id, item_ids, at_ms, which=chosen, context=given), at)
    if as_json:
        return print_json(as_dict(answer) | time_of)
    return out.print(show.scores(answer, item_ids, f"for user {user_id}"))


def client(
    address: Address = None,
    token: Token = "",
    certificate: Trusted = None,
    client_certificate: Own = None,
    client_key: OwnKey = None,
    config: Config = None,
) -> Client:
    """The client of the service at an address, else of the one that the settings start here."""
    serving = settings_of(config).serving
    if not address:
        return client_of(serving, token, certificate, client_certificate, client_key)
    trusted = certificate or serving.tls_certificate
    return Client(address, token, trusted, client_certificate=client_certificate, client_key=client_key)


def price(text: str) -> float:
    """A price as it is typed.

    Raises:
        typer.BadParameter: it is no number.
    """
    try:
        return float(text)
    except ValueError:
        words = f"got {text!r}; expected a number with a decimal point, and nothing between thousands, as 15.50"
        raise typer.BadParameter(words) from None


def steering(
    exclude: Excluded = None,
    category: Category = None,
    exclude_category: NoCategory = None,
    brand: Brand = None,
    exclude_brand: NoBrand = None,
    domain: Domain = None,
    min_price: Annotated[
        float | None, typer.Option(parser=price, metavar="PRICE", help="Only items of at least this price.")
    ] = None,
    max_price: Annotated[
        float | None, typer.Option(parser=price, metavar="PRICE", help="Only items of at most this price.")
    ] = None,
    diversity: Annotated[
        float | None, typer.Option(help="How far apart the items are to be, 0 to 1; default: as the service has it.")
    ] = None,
) -> Steering:
    """What is asked of a list."""
    return Steering(
        excluded=exclude or (),
        categories=category or (),
        excluded_categories=exclude_category or (),
        brands=brand or (),
        excluded_brands=exclude_brand or (),
        domains=domain or (),
        min_price=min_price,
        max_price=max_price,
        diversity=diversity,
    )


def context_of(given: list[str] | None) -> dict[str, str]:
    """Names and values of a context.

    Raises:
        typer.BadParameter: one has no `=`.
    """
    pairs = [one.partition("=") for one in given or ()]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise typer.BadParameter(f"got {wrong[0]!r}; expected NAME=VALUE, as device=phone", param_hint="--context")
    names = [name for name, _, _ in pairs]
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
        raise typer.BadParameter(f"got {twice[0]!r} twice; expected one value for each field", param_hint="--context")
    return {name: value for name, _, value in pairs}


def list_of(which: str) -> Which:
    """The list of this name.

    Raises:
        typer.BadParameter: there is none.
    """
    if which not in LISTS:
        raise typer.BadParameter(f"got {which!r}; expected {', '.join(LISTS)}", param_hint="--list")
    return cast("Which", which)


def asked(call: Callable[[int], Answer], at_ms: int | None) -> tuple[Answer, dict[str, str]]:
    """What a call answers, and in words of JSON for which time: `given`, `now` or `newest_event`.

    Without a time it is asked for now. Where the newest event that state and model know is older than HISTORY_MS, it is
    asked again for the millisecond after that event, and stderr says so.

    Args:
        call: takes a request time in unix milliseconds, 0 = now.
        at_ms: the time that was given.
    """
    if at_ms is not None:
        return call(at_ms), {"request_time": "given"}
    answer: Any = call(0)
    origins = [one.provenance for one in getattr(answer, "user_slates", [answer])]
    newest_ms = max(max(origin.watermark_ms, origin.model_watermark_ms) for origin in origins)
    age_ms = max(origin.request_time_ms for origin in origins) - newest_ms
    if newest_ms <= 0 or age_ms <= HISTORY_MS:
        return answer, {"request_time": "now"}
    err.print(
        f"note: the newest event is of {when(newest_ms)}, {show.span(age_ms)} ago: this is for 1 ms after it; "
        "--at TIME asks for another time",
        soft_wrap=True,
    )
    return call(newest_ms + 1), {"request_time": "newest_event"}
