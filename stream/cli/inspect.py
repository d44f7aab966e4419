"""`driftline doctor`, `config show|validate`, `profile show|try`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of, when
from driftline.stream.cli.own import SOURCES, Told, own_files

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
    from driftline.configs.keys import leaves, shown
    from driftline.configs.load import load

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


@config_app.command()
def validate(config: Config = None, as_json: AsJson = False) -> None:
    """What is wrong with settings, their prompt file and the files that they name. Exit code 64 if anything is.

    Reads what the environment adds, too, and notes what can hardly be meant: a request that nothing can answer, two
    parts on one port, variables that look like settings and are none.

    Example: `driftline config validate -c garden.yaml`
    """
    from driftline.configs.environment import strays
    from driftline.configs.errors import ConfigError
    from driftline.configs.explain import sentences
    from driftline.configs.load import load
    from driftline.configs.meaning import doubts, missing_files
    from driftline.llm.prompts import load_prompts, path_of

    faults, notes, prompts = list[str](), strays(os.environ), None
    try:
        loaded = load(config)
    except ConfigError as error:
        faults += error.faults
    else:
        settings, places = loaded.settings, list(loaded.origins.values())
        prompts = path_of(settings.profiles.prompts)
        faults += sentences(missing_files(settings, loaded.origins), places)
        notes = sentences(doubts(settings, loaded.origins), places) + notes
        try:
            load_prompts(settings.profiles.prompts)
        except ConfigError as error:
            faults += error.faults
    if as_json:
        read = None if prompts is None else str(prompts)
        print_json({"ok": not faults, "mistakes": faults, "notes": notes, "prompts": read})
    else:
        for note in notes:
            out.print(f"note: {note}", soft_wrap=True)
        for fault in faults:
            out.print(fault, soft_wrap=True)
        ok = f"ok: {config or 'default'}, prompts of {prompts}"
        out.print(f"{len(faults)} {'mistake' if len(faults) == 1 else 'mistakes'}" if faults else ok, soft_wrap=True)
    if faults:
        raise typer.Exit(ConfigError.exit_code)


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


@profile_app.command("try")
def profile_try(
    users: Annotated[int, typer.Option(min=1, max=1000, help="Users whose profile is written.")] = 3,
    events: Annotated[str | None, typer.Option(help=f"Events: {SOURCES}; default: the bundled shop.")] = None,
    items: Annotated[str | None, typer.Option(help="Items, in the same formats.")] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Ask the model of the settings; else the template answers, at no cost.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What a prompt file makes of some users: what is asked, what may be answered, the answer and what stands of it.

    No broker and, without --model, no language model: the way to write prompts of your own.

    Example: `driftline profile try -c ecommerce --users 1`
    """
    from driftline.stream.profile.trial import trials

    settings = settings_of(config or "ecommerce")
    if (events is None) != (items is None):
        raise typer.BadParameter("expected --events and --items together: a prompt is made of the items' titles")
    with own_files(events or str(EVENTS), items or str(ITEMS), settings, Told()) as (event_file, item_file):
        made = trials(settings, Path(str(event_file)), Path(str(item_file)), users, model)
    if as_json:
        return print_json(made)
    for user in made["users"]:
        out.print(Text(f"user {user['user_id']}", "bold"))
        out.print(user["record"], soft_wrap=True)
        for facet, answers in user["may_be_answered"].items():
            counted = ", ".join(f"{text} ({n})" for text, n in answers.items())
            out.print(f"  {facet}: {counted or 'nothing is supported'}", soft_wrap=True)
        read = f"an endpoint reads about {user['prompt_chars'] // 4:,} tokens"
        out.print(f"answer of {made['source']} ({read}):", soft_wrap=True)
        out.print("\n".join(f"  {line}" for line in user["answer"].splitlines()), soft_wrap=True)
        out.print(f"profile: {user['text']}\n", soft_wrap=True)
    return out.print(
        f"the first {made['events']:,} events ask for {made['requests']:,} profiles of {made['users_due']:,} users",
        soft_wrap=True,
    )


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
