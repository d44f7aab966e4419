"""What an import says before it begins: what values will mean, and what the configuration beside the files holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from driftline.configs.errors import InputError
from driftline.configs.explain import did_you_mean
from driftline.configs.files import presets
from driftline.configs.load import load_settings
from driftline.configs.settings import UNKNOWN_ACTION, ItemFiles, Settings
from driftline.stream.convert.guess import TIMES, Mapping
from driftline.stream.convert.numbers import BETWEEN, are_grades
from driftline.stream.convert.run import Done, Plan
from driftline.stream.durable import put_aside
from driftline.stream.events.files import UNNAMED
from driftline.stream.events.schema import shorten

HEAD = "# Written beside the files: how files like these are read. Every other setting may stand here too.\n"


def meaning(settings: Settings, action: str, values: Sequence[float] = ()) -> str:
    """What an action means under a configuration, with the share of values that count as wanted."""
    found = settings.action(action)
    weight = f"weight {found.weight:g}"
    if not found.positive:
        return f"{weight}, never counts as wanted"
    if found.positive_from is None:
        return f"{weight}, counts as wanted whatever its value"
    share = f", {100 * sum(map(found.wanted, values)) / len(values):.0f}% of these" if values else ""
    return f"{weight}, counts as wanted from {found.positive_from:g} on{share}"


def unset_actions(settings: Settings, actions: Counter[str]) -> str:
    """What becomes of actions that the configuration does not set, "" = it sets all.

    Args:
        actions: events by action.
    """
    unknown = Counter({name: n for name, n in actions.items() if name not in settings.actions})
    if not unknown:
        return ""
    counts = []
    for action, n in unknown.most_common(10):
        near = did_you_mean(action, settings.actions).removeprefix("; ")
        counts.append(f"{n:,} {shorten(action)}{near and f' ({near})'}")
    if len(unknown) > len(counts):
        counts.append(f"{len(unknown) - len(counts):,} actions more")
    first = unknown.most_common(1)[0][0]
    return (
        f"warning: events with an action that configuration {settings.name!r} does not set: {', '.join(counts)}. "
        f"Each counts as wanted, with weight {UNKNOWN_ACTION.weight:g}; say what it means, as "
        f"actions: {{{_yaml_key(first)}: {{weight: 1.0, positive: true}}}}, or choose another -c"
    )


def _yaml_key(name: str) -> str:
    return yaml.safe_dump({name: 0}, allow_unicode=True).rsplit(":", 1)[0]


def check_value(plan: Plan, settings: Settings) -> str:
    """A word on what values mean, and on rows whose action nothing names, "" = there is nothing to say.

    Raises:
        InputError: they are ratings: low ones would count as wanted.
    """
    mapping = plan.mapping
    column = mapping.columns.get("value")
    values = _values(plan, column)
    if column is None or not values:
        return _unsaid(plan, settings)
    if mapping.is_rating and mapping.action == "rate" and settings.action("rate").positive_from is None:
        return (
            f"a rate has {meaning(settings, 'rate')} under configuration {settings.name!r}; "
            f"under -c media it has {meaning(load_settings('media'), 'rate', values)}"
        )
    span = f"{min(values):g} to {max(values):g} in the first {len(values):,} rows"
    if mapping.action and settings.action(mapping.action).positive_from is not None:
        return (
            f"{column!r} is the value ({span}); each {mapping.action} has {meaning(settings, mapping.action, values)}, "
            f"in the unit of configuration {settings.name!r}: actions: {{{_yaml_key(mapping.action)}: "
            "{positive_from: ...}} in driftline.yaml says it in yours"
        )
    if _says_action(mapping):
        return ""
    if not mapping.is_rating and not (mapping.may_be_rating and are_grades(values)):
        known = [
            f"--action {name} ({meaning(settings, name, values)})"
            for name, one in settings.actions.items()
            if one.positive_from is not None and name != "rate"
        ]
        return (
            f"{column!r} is the value ({span}) and nothing says what was done: each row is an {UNNAMED!r}, "
            f"{meaning(settings, UNNAMED)}; {' or '.join(known) or '--action purchase, play, ...'} says more"
        )
    choices = [f"under configuration {settings.name!r}, {meaning(settings, 'rate', values)}"]
    if settings.action("rate").positive_from is None:
        choices.append(f"with -c media, {meaning(load_settings('media'), 'rate', values)}")
    raise InputError(
        f"{plan.source}: {column!r} is taken as value ({span}) and nothing says what was done: as it is, every row "
        f"counts as wanted, low ones too. Say it: --action rate ({'; '.join(choices)}), or --action {UNNAMED} to "
        "keep it so"
    )


def _says_action(mapping: Mapping) -> bool:
    return bool(mapping.action or mapping.action_from or "action" in mapping.columns)


def _unsaid(plan: Plan, settings: Settings) -> str:
    """A word on rows that are all wanted as nothing says what was done, with columns that might."""
    if _says_action(plan.mapping):
        return ""
    grades = [
        name
        for name in plan.mapping.left_out
        if len(values := _values(plan, name)) == len(plan.sample.values[name]) and are_grades(values)
    ]
    if grades:
        hint = f"{', '.join(map(repr, grades))} may be ratings: --map value={grades[0]} --action rate takes them so"
    else:
        hint = "--action view, purchase, play, ... says more"
    return f"nothing says what was done: each row is an {UNNAMED!r}, {meaning(settings, UNNAMED)}; {hint}"


def prices_below_zero(plan: Plan, done: Done) -> str:
    """A word on prices below 0, which are kept, "" = there are none."""
    if not (n := done.prices_below_zero):
        return ""
    rows, column = "row has" if n == 1 else "rows have", plan.mapping.columns["price"]
    return f"{n:,} {rows} a price below 0 in {column!r}, which is kept and says nothing of what is paid"


def below_zero(plan: Plan, done: Done, settings: Settings) -> str:
    """A word on values below 0, "" = there are none, or they are ratings."""
    mapping, n = plan.mapping, done.below_zero
    action = mapping.below_zero or mapping.action or UNNAMED
    if not n or mapping.is_rating or action == "rate":
        return ""
    rows = f"{n:,} {'row' if n == 1 else 'rows'} with a value below 0 in {mapping.columns['value']!r}"
    if of := done.below_zero_of:
        kept = "; ".join(f"{count:,} {name} ({meaning(settings, name)})" for name, count in of.most_common(3))
        wanted = any(settings.action(name).wanted(-1.0) for name in of)
        advice = ". If they are returns or refunds, name them so in that column" if wanted else ""
        return f"{rows} keep the action that {mapping.columns['action']!r} says: {kept}{advice}"
    if mapping.below_zero:
        return (
            f"{rows} became {action!r} ({meaning(settings, action)}), the value without its sign; "
            "--action-below-zero NAME changes it"
        )
    return f"{rows} stayed {action!r} ({meaning(settings, action)}); --action-below-zero return makes them returns"


def _values(plan: Plan, column: str | None) -> list[float]:
    """The numbers in the sample of a column."""
    found = []
    for cell in plan.sample.values.get(column, ()) if column else ():
        try:
            found.append(float(str(cell).replace(",", ".") if plan.mapping.decimal == "," else cell))
        except (TypeError, ValueError):
            continue
    return found


def rows_of(plan: Plan) -> list[tuple[str, str, str]]:
    """(field, column, how) of a mapping, for people."""
    mapping, found = plan.mapping, []
    for field, column in mapping.columns.items():
        clock = mapping.clocks.get(field)
        words = [clock.about(plan.sample.values.get(column, ()))] if clock else []
        if mapping.kind.columns[field] == "number" and mapping.decimal == ",":
            words.append("decimal comma")
        if others := mapping.others.get(field):
            words.append(f"could also be {', '.join(others)}")
        found.append((field, column, "; ".join(words)))
    if mapping.action:
        rows = "below" if mapping.action_from else "in all rows"
        found.append(("action", "", f"{mapping.action!r} {rows}"))
    found += [("action", "", f"{name!r} from {least:g} on") for least, name in mapping.action_from]
    if mapping.below_zero:
        found.append(("action", "", f"{mapping.below_zero!r} where the value is below 0"))
    return found


# ---------------------------------------------------------------------------------------------- the configuration


def reading_of(mapping: Mapping, reading: ItemFiles) -> dict[str, Any]:
    """What reads files like this one without a guess, but for what the defaults say."""
    clocks = {mapping.clocks[field].how for field in mapping.columns if mapping.kind.columns[field] in TIMES}
    update: dict[str, Any] = {"map": mapping.columns, "time": clocks.pop() if len(clocks) == 1 else reading.time}
    if mapping.decimal in BETWEEN:
        update["decimal"] = mapping.decimal
    changed = reading.model_copy(update=update)
    default = type(reading)()
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name in type(reading).model_fields
        if (value := getattr(changed, name)) != getattr(default, name)
    }


def write_config(
    to: Path,
    base: str | None,
    events: dict[str, Any],
    items: dict[str, Any],
    actions: dict[str, Any] | None = None,
    others: dict[str, Any] | None = None,
    name: str | None = None,
) -> bool:
    """Writes settings that extend those that were used; False if these are the file itself, which stays as it is.

    An earlier file of other content is kept beside it as `.old`.

    Args:
        base: preset or file that was used, None = the default.
        events, items: of `reading_of`; empty = none were read.
        actions: what actions of their own mean.
        others: further sections.
        name: of the configuration, "" = that of the one that was used, None = that of the folder.
    """
    if base is not None and base not in presets():
        if to.exists() and Path(base).samefile(to):
            return False
        base = str(Path(base).absolute())
    sections: dict[str, Any] = {"extends": base or "default"}
    name = to.parent.absolute().name if name is None else name
    more = (
        ("name", name),
        ("actions", actions),
        *(others or {}).items(),
        ("event_files", events),
        ("item_files", items),
    )
    sections |= {name: found for name, found in more if found}
    text = HEAD + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)
    if to.exists() and to.read_text("utf-8") != text:
        put_aside(to)
    to.write_text(text, "utf-8")
    return True
