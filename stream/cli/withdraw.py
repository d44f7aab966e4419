"""`driftline withdraw ITEM ...`: takes items out of all recommendations; the rest of their records stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import orjson
import typer

from driftline.configs.errors import InputError
from driftline.serving.availability import ItemRecords
from driftline.serving.partitions import LastWords
from driftline.stream.cli.common import AsJson, Config, out, print_json, settings_of
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import MAX_ID_BYTES

ITEMS = "items"


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(withdraw)


def withdraw(
    item_ids: Annotated[list[str], typer.Argument(metavar="ITEM...", help="Which items.")],
    back: Annotated[bool, typer.Option("--back", help="Offer them again instead.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take items out of all recommendations, within seconds and without the trainer; --back offers them again.

    Sends the newest record of each item once more with `available`, to the partition where it stands: title, price and
    categories stay. Exit code 65, and nothing is sent, if the topic has no record of one of them.

    Example: `driftline withdraw 85123A 22423`, later `driftline withdraw --back 85123A`
    """
    from driftline.stream.events.produce import outlet
    from driftline.stream.kafka.broker import broker
    from driftline.stream.kafka.reading import read_all

    if bad := next((one for one in item_ids if not 0 < len(one.encode(errors="replace")) <= MAX_ID_BYTES), None):
        raise InputError(f"item id {bad!r:.80}; expected 1 to {MAX_ID_BYTES} bytes of UTF-8")
    settings = settings_of(config)
    with broker(settings.broker) as bootstrap, outlet(settings.broker, bootstrap, "driftline-withdraw") as send:
        messages = again(read_all(settings.broker, bootstrap, ITEMS), item_ids, back)
        send(messages)
    if as_json:
        return print_json({"item_ids": item_ids, "available": back, "sent": len(messages)})
    ids = " ".join(item_ids)
    if back:
        return out.print(f"offered again: {ids}", soft_wrap=True)
    return out.print(f"withdrawn: {ids}; `driftline withdraw --back {ids}` offers them again", soft_wrap=True)


def again(found: Iterable[Any], item_ids: Sequence[str], available: bool) -> list[Outgoing]:
    """The newest record of each item, with another `available`, for the partition where it stands.

    Args:
        found: the records of `items`, as kafka-python has them.

    Raises:
        InputError: there is no record of one of them, or its newest one is a tombstone.
    """
    wanted, last = set(item_ids), dict[str, Any]()
    records, words = ItemRecords(), LastWords()
    for record in found:
        try:
            item_id, _ = records.read(record.key, record.value)
        except (ValueError, KeyError, TypeError):
            continue  # it is no item
        if item_id in wanted and words.is_last(item_id, record.partition, record.timestamp):
            last[item_id] = record
    if missing := [item_id for item_id in item_ids if item_id not in last or not last[item_id].value]:
        raise InputError(
            f"the topic items has no record of {', '.join(missing)!s:.200}; check the ids. An item that only "
            "events name, or that was deleted, is withdrawn by a record of its own: `driftline produce --items FILE` "
            'with "available": false'
        )
    return [_repeated(item_id, last[item_id], available) for item_id in item_ids]


def _repeated(item_id: str, record: Any, available: bool) -> Outgoing:
    value = orjson.dumps(orjson.loads(record.value) | {"available": available})
    return Outgoing(ITEMS, record.key or item_id.encode(), value, partition=record.partition)
