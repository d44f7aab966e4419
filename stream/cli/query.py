"""`driftline query user|model`, `recommend`, `similar`: clients of the gRPC service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, cast

import typer

from driftline.client import Client, Which, as_dict
from driftline.serving import show
from driftline.serving.local import client_of
from driftline.stream.cli.common import AsJson, Config, out, parse_time, print_json, settings_of

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
        parser=parse_time, metavar="TIME", help="Request time: a date, a time or unix milliseconds; default now."
    ),
]
K = Annotated[int, typer.Option("-k", min=1, max=1000, help="Items wanted.")]
LISTS = ("overall", "novel", "repeat")


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
    watch: Annotated[bool, typer.Option("--watch", help="Again after each change, until Ctrl-C.")] = False,
    address: Address = None,
    token: Token = "",
    certificate: Trusted = None,
    client_certificate: Own = None,
    client_key: OwnKey = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The state of a user as the stream left it: history, counters, profile, freshness.

    Example: `driftline query user 13085`
    """
    with client(config, address, token, certificate, client_certificate, client_key) as service:
        answers = service.watch(user_id, history) if watch else [service.user_state(user_id, history, at_ms(at))]
        for answer in answers:
            if as_json:
                print_json(as_dict(answer))
            else:
                out.print(show.user_state(answer, history))


def model(
    address: Address = None,
    token: Token = "",
    certificate: Trusted = None,
    client_certificate: Own = None,
    client_key: OwnKey = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Which model serves, what it has learnt from and how good it was.

    Example: `driftline query model --json`
    """
    with client(config, address, token, certificate, client_certificate, client_key) as service:
        answer = service.model_info()
    return print_json(as_dict(answer)) if as_json else out.print(show.model_info(answer))


def recommend(
    user_id: Annotated[str, typer.Argument(help="For whom.")],
    k: K = 10,
    at: At = None,
    which: Annotated[str, typer.Option("--list", help="overall, novel or repeat.")] = "overall",
    address: Address = None,
    token: Token = "",
    certificate: Trusted = None,
    client_certificate: Own = None,
    client_key: OwnKey = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What a user should see next, with reasons.

    Example: `driftline recommend 13085 -k 5 --list novel`
    """
    if which not in LISTS:
        raise typer.BadParameter(f"got {which!r}; expected {', '.join(LISTS)}", param_hint="--list")
    with client(config, address, token, certificate, client_certificate, client_key) as service:
        answer = service.recommend(user_id, k, cast("Which", which), at_ms(at))
    return print_json(as_dict(answer)) if as_json else out.print(show.slate(answer, f"for user {user_id}"))


def similar(
    item_id: Annotated[str, typer.Argument(help="Similar to which item.")],
    k: K = 10,
    address: Address = None,
    token: Token = "",
    certificate: Trusted = None,
    client_certificate: Own = None,
    client_key: OwnKey = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Items that go best with one item.

    Example: `driftline similar 85123A`
    """
    with client(config, address, token, certificate, client_certificate, client_key) as service:
        answer = service.similar(item_id, k)
    return print_json(as_dict(answer)) if as_json else out.print(show.slate(answer, f"with item {item_id}"))


def client(
    config: str | None,
    address: str | None,
    token: str,
    certificate: Path | None,
    client_certificate: Path | None,
    client_key: Path | None,
) -> Client:
    """The client of the service at an address, else of the one that the settings start here."""
    serving = settings_of(config).serving
    if not address:
        return client_of(serving, token, certificate, client_certificate, client_key)
    trusted = certificate or serving.tls_certificate
    return Client(address, token, trusted, client_certificate=client_certificate, client_key=client_key)


def at_ms(given: int | None) -> int:
    """The request time in unix milliseconds, now if none was given."""
    return time.time_ns() // 1_000_000 if given is None else given
