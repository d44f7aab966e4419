"""`driftline doctor`, `config show`, `profile show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream.cli.common import AsJson, Config, err, out, print_json, settings_of, when

config_app = typer.Typer(no_args_is_help=True, help="Settings: what counts, and where it comes from.")
profile_app = typer.Typer(no_args_is_help=True, help="What a language model wrote about a user.")


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(doctor)


def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """What is installed, reachable and healthy, and how to mend what is not. Exit code 1 if something is not.

    Example: `driftline doctor`
    """
    from stream.doctor import examine

    findings = examine(settings_of(config))
    if as_json:
        print_json([{"part": f.part, "state": f.state, "detail": f.detail, "remedy": f.remedy} for f in findings])
    else:
        table = Table("part", "", "what", "what to do")
        for finding in findings:
            color = {"ok": "green", "note": "yellow", "bad": "red"}[finding.state]
            table.add_row(finding.part, Text(finding.state, color), finding.detail, finding.remedy)
        out.print(table)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@config_app.command("show")
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Every setting as it counts now.

    Example: `driftline config show --origin -c ecommerce`
    """
    from configs.load import leaves, load, shown

    loaded = load(config)
    values = {key: shown(key, value) for key, value in leaves(loaded.settings)}
    if as_json:
        plain = {
            key: value if isinstance(value, str | int | float | bool | None) else str(value)
            for key, value in values.items()
        }
        return print_json(
            {key: {"value": v, "origin": loaded.origins[key]} if origin else v for key, v in plain.items()}
        )
    for key, value in values.items():
        where = f"    {loaded.origins[key]}" if origin else ""
        out.print(Text.assemble(f"{key} = {value}", (where, "dim")), soft_wrap=True)
    return None


@profile_app.command("show")
def profile_show(
    user_id: Annotated[str, typer.Argument(help="Whose profile.")], config: Config = None, as_json: AsJson = False
) -> None:
    """Every version of a user's profile that was written, oldest first.

    Example: `driftline profile show 13085`
    """
    from configs.errors import InputError
    from stream.broker import broker
    from stream.reading import read_all

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        records = read_all(settings.broker, bootstrap, "profiles.log")
        found = [profile_in(r.value) for r in records if r.key == user_id.encode() and r.value]
    profiles = [profile for profile in found if profile is not None]
    if len(found) > len(profiles):
        err.print(f"{len(found) - len(profiles):,} records of profiles.log are no profiles and are left out")
    if not profiles:
        raise InputError(f"no profile of user {user_id!r} was written yet; `driftline profiler` writes them when due")
    for profile in profiles:
        profile.pop("embedding", None)
    if as_json:
        return print_json(profiles)
    for profile in profiles:
        valid_from = when(profile.get("valid_from_ms", -1))
        out.print(f"v{profile.get('version')} by {profile.get('source')}, valid from {valid_from}")
        out.print(f"  {profile.get('text')}")
        for name, text in profile.get("facets", {}).items():
            if text:
                out.print(f"  {name}: {text}")
    return None


def profile_in(record: bytes) -> dict[str, Any] | None:
    """What a record of `profiles.log` holds, None if it is no profile."""
    import orjson

    from configs.errors import InputError
    from llm.profile import parse_profile

    try:
        parse_profile(record)
    except InputError:
        return None
    profile: dict[str, Any] = orjson.loads(record)
    return profile
