"""Which parts an engine has: those that driftline brings, and those of installed packages that the settings switch on.

A package brings a part as an entry point of the group `driftline.parts`, under the part's name; it is loaded where
`systems` names it. The order is that of the columns: ours first, then theirs by name.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from driftline.configs.errors import ConfigError
from driftline.configs.switches import PARTS, is_brought
from driftline.model.labels import LabelsPart
from driftline.model.part import Part, Plug, VectorPlug
from driftline.model.plugs import GraphPart, NoisePart, PlaceboPlug, SequencePart
from driftline.model.recall import PROFILES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Arrays
    from driftline.graph.texts import TextTable
    from driftline.graph.view import ItemTable

RESERVED = {"base", "context", "reverse", "engine", "items", "profiles", "signals", "state", "text"}
"""Names of blocks, of files in a snapshot and of costs that are no part's."""
OURS: dict[str, type[Part]] = {part.name: part for part in (SequencePart, GraphPart, LabelsPart, NoisePart)}
"""In the order of their columns."""
OF_PROFILES = (PROFILES, "fused")
"""Blocks that count for the profiles: `fused` is a profile joined with the graph memory of its user."""


def part_of(name: str) -> type[Part]:
    """The class of a part.

    Raises:
        ConfigError: nothing that is installed brings one of this name.
    """
    if name in OURS:
        return OURS[name]
    for entry in entry_points(group=PARTS, name=name):
        part = entry.load()
        if not (isinstance(part, type) and issubclass(part, Part) and part.name == name) or name in RESERVED:
            raise ConfigError(
                f"{entry.value}, entry point {name!r} of {PARTS}, is {part!r}; expected a Part whose name is that of "
                f"the entry point and none of {', '.join(sorted(RESERVED))}"
            )
        return part
    raise ConfigError(
        f"no part {name!r} is installed; expected one of {', '.join(OURS)}, or a package with an entry point of this "
        f"name in the group {PARTS}. Install it here, too, or take {name!r} out of `systems`"
    )


def wanted(settings: Settings) -> list[type[Part]]:
    """The parts that the settings switch on."""
    names = [name for name, part in OURS.items() if settings.systems.get(name, part.default) != "off"]
    brought = (name for name, arm in settings.systems.items() if name not in OURS and arm != "off")
    names += sorted(filter(is_brought, brought))  # not as they are named: hashes of settings know no order
    return [part_of(name) for name in names]


def is_part(name: str) -> bool:
    """Whether there is a part of this name."""
    return name in OURS or is_brought(name)


def is_off(name: str, settings: Settings) -> bool:
    """Whether a part is switched off, or was not switched on. Raises ConfigError if there is none of this name."""
    return settings.systems.get(name, part_of(name).default) == "off"


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


def units_of(parts: Mapping[str, Part], settings: Settings) -> dict[str, tuple[str, ...]]:
    """Blocks of what can be switched off alone: of each part, and of the profiles where there may be any."""
    blocks = {name: tuple(part.plugs()) for name, part in parts.items()}
    if not settings.ranker.text_dim or settings.systems.get(PROFILES) == "off":
        return blocks
    there = {PROFILES, *(block for of in blocks.values() for block in of)}
    return blocks | {PROFILES: tuple(block for block in OF_PROFILES if block in there)}


def plugs_of(parts: Mapping[str, Part], settings: Settings) -> dict[str, Plug]:
    """The plugs of parts by block; where `systems` wants a placebo of a part, random vectors in their stead.

    Raises:
        ConfigError: a part that is more than vectors has no placebo.
    """
    plugs: dict[str, Plug] = {}
    for name, part in parts.items():
        for block, plug in part.plugs().items():
            if block in plugs:
                raise ConfigError(f"part {name!r} has a block {block!r}, which is another part's; rename it")
            if settings.systems.get(name) != "placebo":
                plugs[block] = plug
            elif isinstance(plug, VectorPlug) and plug.columns == VectorPlug.columns:
                plugs[block] = PlaceboPlug(plug, block, settings.ranker.seed)
            else:
                raise ConfigError(f"systems.{name}: got placebo; {block!r} is more than vectors and has none")
    return plugs
