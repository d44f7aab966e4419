"""Arms that run the engine: the lone backbones, the ranker with its blocks on and off, frozen, incremental, retrained.

    hstu, sasrec, graph          one model alone: no ranker, no signals
    graph:random                 the graph over memories that are not trained: what counting says is learnt all the same
    incremental[:NAME=ARM]...    the whole engine, systems and parts switched as `systems` of the settings switches them
    incremental[-NAME]...        all blocks but those that count for a part, or for profiles
    ranker[+NAME]...             the engine with these blocks alone
    frozen                       the whole engine, weights fixed at the split, histories and signals live
    weekly_frozen                what `incremental` is at the start of every week, fixed in between
    retrain                      the whole engine, trained from scratch before every week by epochs, fixed in between

A part that is off by default is switched on by `+NAME`, too. Arms that differ only in what their ranker sees, by + and
-, share one StreamLearner: features are computed once. Those that switch something have one of their own. Where the
gate acts (`model.gate`), it does so in what runs live, `incremental` and its frozen kin, in a pass of their own: an arm
that leaves a part out, or adds one, has no gate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from driftline.configs.errors import ConfigError, InputError
from driftline.configs.load import switched
from driftline.configs.settings import Settings
from driftline.model.engine import MAIN
from driftline.model.parts import OF_PROFILES, is_off, is_part
from driftline.model.recall import PROFILES
from driftline.stream.replay.arms import Arm, Setup
from driftline.stream.replay.engine_pass import EngineArm, EnginePass
from driftline.stream.replay.frozen_arms import FrozenArm, RetrainArm, WeeklyFrozenArm
from driftline.stream.replay.lone_arms import GraphArm, SequenceArm
from driftline.stream.replay.offline import settings_of_pass

BLOCKS = {PROFILES: OF_PROFILES}
"""Blocks of columns that count for a name; others count for their own.

`fused` is a profile joined with the graph memory of its user: so `-graph` leaves that much of the graph in,
`:graph=off` nothing.
"""
GATED = " gated"
"""Ends the key of a pass whose gate may switch parts."""
RANKS = " ranks"
"""Ends the key of a pass whose graph has a ranking of its own."""
_NAME = re.compile(r"(?P<base>ranker|incremental)(?P<blocks>([+-]\w+)*)(?P<switches>(:\w+=\w+)*)")


def build(name: str, setup: Setup) -> Arm | None:
    """The arm of a name, None if it is none of these.

    Raises:
        InputError: it switches what there is not.
    """
    settings = seeded(setup.settings, setup.seed)
    acts = settings.model.gate.mode == "act"

    def shared_pass(
        whole: bool = True, switches: Mapping[str, str] | None = None, ranks: bool = False, gated: bool = False
    ) -> EnginePass:
        chosen = dict(sorted((switches or {}).items()))
        key = f"pass {chosen}{RANKS if ranks else ''}{GATED if gated and acts else ''}"
        if key not in setup.shared:
            of_pass = _switched(name, settings if gated or not acts else without_gate(settings), chosen)
            made = setup.shared[key] = EnginePass(setup, of_pass, whole, ranks=ranks)
            first = setup.shared.get("state_of")
            if first is None or (first.endswith(RANKS) and not ranks):  # the state of what runs live, if it runs
                setup.shared["state_of"] = key
                setup.shared["state_sha256"] = made.state_sha256
                setup.shared["adoptions"] = lambda: made.learner.adoptions
        shared: EnginePass = setup.shared[key]
        if whole:
            shared.widen()
        return shared

    match name:
        case "hstu" | "sasrec":
            changed = settings.model_copy(update={"model": settings.model.model_copy(update={"backbone": name})})
            return SequenceArm(name, setup, changed, lambda: setup.shared.get("pass {}"))
        case "graph" | "graph:random":
            switches = {} if name == "graph" else {"graph": "random"}
            return GraphArm(name, shared_pass(whole=False, switches=switches, ranks=True))
        case "frozen":
            return FrozenArm(name, shared_pass(gated=True))
        case "weekly_frozen":
            live = settings if acts else without_gate(settings)
            return WeeklyFrozenArm(EnginePass(setup, live))
        case "retrain":
            offline = settings_of_pass(without_gate(settings), setup.log.groups)
            return RetrainArm(EnginePass(setup, offline, share=1.0))
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    whole = found["base"] == "incremental"
    signed = {part: sign for sign, part in re.findall(r"([+-])(\w+)", found["blocks"])}
    switches = dict(re.findall(r":(\w+)=(\w+)", found["switches"]))
    if not all(part == PROFILES or is_part(part) for part in signed):
        return None
    added = {part for part in signed if part != PROFILES and is_off(part, settings)}
    if not all(sign == "+" if part in added or not whole else sign == "-" for part, sign in signed.items()):
        return None
    gated = whole and not signed.keys() - added
    shared = shared_pass(switches=dict.fromkeys(added, "on") | switches, gated=gated)
    named = {block for part in signed for block in BLOCKS.get(part, (part,))}
    plugs = shared.learner.engine.plugs
    if not whole and not named <= plugs.keys():
        return None
    blocks = tuple(block for block in plugs if (block in named) != whole or (block in added and whole))
    arm = MAIN if whole and blocks == tuple(plugs) else name
    shared.add(arm, blocks)
    return EngineArm(name, shared, arm)


def seeded(settings: Settings, seed: int) -> Settings:
    """The settings with every seed shifted."""
    sections = {name: getattr(settings, name) for name in ("model", "ranker", "graph")}
    changed = {name: s.model_copy(update={"seed": s.seed + seed}) for name, s in sections.items()}
    return settings.model_copy(update=changed)


def without_gate(settings: Settings) -> Settings:
    """The settings with nothing compared."""
    gate = settings.model.gate.model_copy(update={"mode": "off"})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"gate": gate})})


def _switched(name: str, settings: Settings, chosen: Mapping[str, str]) -> Settings:
    try:
        return switched(settings, chosen)
    except ConfigError as error:
        raise InputError(f"--arms got {name!r}: {error}") from None
