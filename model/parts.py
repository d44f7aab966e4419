"""Which parts an engine has: those that driftline brings, and those of installed packages that the settings switch on.

A package brings a part as an entry point of the group `driftline.parts`, under the part's name; it is loaded where
`systems` names it. The order is that of the columns: ours first, then theirs as the settings name them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from driftline.configs.errors import ConfigError
from driftline.model.part import Part, Plug
from driftline.model.plugs import GraphPart, NoisePart, SequencePart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Arrays
    from driftline.graph.texts import TextTable
    from driftline.graph.view import ItemTable

GROUP = "driftline.parts"
OURS: dict[str, type[Part]] = {part.name: part for part in (SequencePart, GraphPart, NoisePart)}
"""In the order of their columns."""


def part_of(name: str) -> type[Part]:
    """The class of a part.

    Raises:
        ConfigError: nothing that is installed brings one of this name.
    """
    if name in OURS:
        return OURS[name]
    for entry in entry_points(group=GROUP, name=name):
        part = entry.load()
        if not (isinstance(part, type) and issubclass(part, Part) and part.name == name):
            raise ConfigError(
                f"{entry.value}, entry point {name!r} of {GROUP}, is {part!r}; expected a Part whose name is {name!r}"
            )
        return part
    raise ConfigError(
        f"no part {name!r} is installed; expected one of {', '.join(OURS)}, or a package with an entry point of this "
        f"name in the group {GROUP}. Install it here, too, or take {name!r} out of `systems`"
    )


def is_brought(name: str) -> bool:
    """Whether an installed package brings a part of this name; nothing is loaded."""
    return bool(entry_points(group=GROUP, name=name))


def wanted(settings: Settings) -> list[type[Part]]:
    """The parts that the settings switch on."""
    names = [name for name, part in OURS.items() if settings.systems.get(name, part.default) != "off"]
    names += [n for n, arm in settings.systems.items() if n not in OURS and arm != "off" and is_brought(n)]
    return [part_of(name) for name in names]


def made(settings: Settings, table: ItemTable, text: TextTable) -> dict[str, Part]:
    """Fresh parts by name; see Part.made."""
    parts = (part.made(settings, table, text) for part in wanted(settings))
    return {part.name: part for part in parts if part is not None}


def opened(
    settings: Settings,
    table: ItemTable,
    names: Sequence[str],
    arrays: Mapping[str, Arrays],
    before: Mapping[str, Part],
) -> dict[str, Part]:
    """The parts of a snapshot by name; see Part.opened.

    Args:
        settings, table: as there.
        names: of the parts, in order.
        arrays: by part.
        before: the parts of the snapshot before.
    """
    return {name: part_of(name).opened(settings, table, arrays.get(name, {}), before.get(name)) for name in names}


def plugs_of(parts: Mapping[str, Part]) -> dict[str, Plug]:
    """The plugs of parts by block."""
    return {block: plug for part in parts.values() for block, plug in part.plugs().items()}
