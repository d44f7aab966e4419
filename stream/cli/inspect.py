"""`driftline doctor`, `config show`, `profile show`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of, when

if TYPE_CHECKING:
    from driftline.graph.profile import Profile

config_app = typer.Typer(no_args_is_help=True, help="Settings: what counts, and where it comes from.")
profile_app = typer.Typer(no_args_is_help=True, help="What a language model wrote about a user.")


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(doctor)


def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """What is installed, reachable and healthy, and how to mend what is not. Exit code 1 if something is not.

    Example: `driftline doctor`
    """
    from driftline.stream.ops.doctor import examine

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
    from driftline.configs.load import leaves, load, shown

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
    from driftline.configs.errors import InputError
    from driftline.stream.kafka.broker import broker
    from driftline.stream.kafka.reading import read_all

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        records = read_all(settings.broker, bootstrap, "profiles.log")
        profiles, refused = written_profiles(r.value for r in records if r.key == user_id.encode() and r.value)
    if refused:
        err.print(f"{refused:,} records of profiles.log are no profiles and are left out")
    if not profiles:
        raise InputError(f"no profile of user {user_id!r} was written yet; `driftline profiler` writes them when due")
    if as_json:
        return print_json([profile.to_dict(embedding=False) for profile in profiles])
    for profile in profiles:
        out.print(f"v{profile.version} by {profile.source}, valid from {when(profile.valid_from_ms)}")
        out.print(f"  {profile.text}")
        for name, text in profile.facets.items():
            if text:
                out.print(f"  {name}: {text}")
    return None


def written_profiles(records: Iterable[bytes]) -> tuple[list[Profile], int]:
    """The profiles among records of `profiles.log` in their order, and how many records are none."""
    from driftline.configs.errors import InputError
    from driftline.graph.profile import parse_profile

    profiles, refused = [], 0
    for record in records:
        try:
            profiles.append(parse_profile(record))
        except InputError:
            refused += 1
    return profiles, refused
