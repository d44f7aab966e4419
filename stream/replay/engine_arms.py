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

import copy
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from driftline.configs.errors import ConfigError, InputError
from driftline.configs.load import switched
from driftline.configs.settings import Settings
from driftline.model.clocks import Clocks
from driftline.model.engine import GATE, MAIN, EngineSlate, ranker_part
from driftline.model.parts import OF_PROFILES, is_off, is_part
from driftline.model.plugs import wanted_history
from driftline.model.ranker import HEADS
from driftline.model.recall import PROFILES
from driftline.model.sequence import SequenceLearner
from driftline.model.standing import is_known, sentence
from driftline.stream.learn.groups import is_of_share
from driftline.stream.learn.learner import StreamLearner
from driftline.stream.replay.arms import Arm, Arrival, Cost, Ranking, Request, Setup, Slate
from driftline.stream.replay.inputs import labels_of, replay_profiles, replay_texts, texts_of
from driftline.stream.replay.offline import before_slice, fit, settings_of_pass
from driftline.stream.state.store import state_sha256

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32
    from driftline.graph.view import Group, UserView
    from driftline.model.engine import Engine, RankerArm

BLOCKS = {PROFILES: OF_PROFILES}
"""Blocks of columns that count for a name; others count for their own.

`fused` is a profile joined with the graph memory of its user: so `-graph` leaves that much of the graph in,
`:graph=off` nothing.
"""
BASE_PARTS = ("state", "signals", "text")
"""Parts that every arm of the engine needs."""
WEEK_MS = 7 * 86_400_000
_NAME = re.compile(r"(?P<base>ranker|incremental)(?P<blocks>([+-]\w+)*)(?P<switches>(:\w+=\w+)*)")


class NoEngine:
    """What stands in the engine's place where no arm asks for a slate: it learns and ranks nothing."""

    def __init__(self) -> None:
        self.arms: dict[str, RankerArm] = {}

    def grow(self, n: int) -> None:
        """Nothing."""

    def set_text(self, index: int, vector: Float32) -> None:
        """Nothing."""

    def learn(self, group: Group, view: UserView, slate: EngineSlate | None = None) -> None:
        """Nothing."""

    def learns(self, part: str) -> bool:
        """Yes: nothing is compared."""
        return True


GATED = " gated"
"""Ends the key of a pass whose gate may switch parts."""
RANKS = " ranks"
"""Ends the key of a pass whose graph has a ranking of its own."""
GROUP_ONLY: Any = object()
"""Stands for a slate where nobody reads one: the graph learns from groups that are scored, not from their scores."""


class Share:
    """An even share of the groups that could be learnt; a trainer that lags chooses alike."""

    def __init__(self, share: float) -> None:
        self.share, self._seen = share, 0

    def takes_next(self) -> bool:
        """Whether the next group is one of it."""
        self._seen += 1
        return is_of_share(self._seen, self.share)


class EnginePass:
    """One StreamLearner and what several arms of one pass ask of it, each thing computed once.

    Args:
        setup: of the pass.
        settings: with the seeds and switches of the pass.
        whole: with engine and backbone; else the graph alone, until an arm asks for more.
        share: of the groups that are learnt, evenly spread; None = as the set-up has it.
        ranks: the graph has a ranking of its own, which changes what its memories learn.
    """

    def __init__(
        self, setup: Setup, settings: Settings, whole: bool = True, share: float | None = None, ranks: bool = False
    ) -> None:
        self.share = Share(setup.learn_share if share is None else share)
        self.setup, self.settings, self.whole, self.ranks = setup, settings, whole, ranks
        self.clocks = Clocks()
        self.learner = self._learner()
        self._slate: tuple[int, EngineSlate] | None = None
        self._learnt = -1

    def _learner(self) -> StreamLearner:
        settings = self.settings
        if not self.whole:
            off = settings.model.model_copy(update={"backbone": "off"})
            settings = settings.model_copy(update={"model": off})
        profiles = replay_profiles(self.setup, settings.systems.get("profiles", "on"))
        texts, labels = texts_of(self.setup, settings), labels_of(self.setup, settings)
        learner = StreamLearner(settings, texts, profiles, labels=labels)
        if self.ranks and learner.graph is not None:
            learner.graph.rank_alone(settings.signals.one_id_space)
        if not self.whole:
            learner.engine = cast("Engine", NoEngine())
        learner.charge(self.clocks)
        learner.counted_wait = self.whole  # each slate is of all that came before; the graph alone asks for none
        return learner

    def widen(self) -> None:
        """Adds engine and backbone, before the first group."""
        if not self.whole:
            self.whole = True
            self.learner = self._learner()

    def add(self, name: str, blocks: tuple[str, ...]) -> None:
        """A ranker that sees only some blocks."""
        if name != MAIN and name not in self.learner.engine.arms:
            self.learner.engine.add_arm(name, blocks, self.settings.ranker.seed)

    def view(self, request: Request) -> UserView:
        """What is known of the user of a request, its candidates being known."""
        if self._slate is not None and self._slate[0] == request.number:
            return self._slate[1].view
        self.learner.add_items(self.setup.log.item_ids[len(self.learner.table) : request.pool])
        return self.learner.view(request.user_id, request.t_ms, request.context)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What runs within answers a request that is scored."""
        self.clocks.asked = True
        try:
            yield
        finally:
            self.clocks.asked = False

    def copied(self) -> EnginePass:
        """The same from here on, with nothing in common but the set-up."""
        return copy.deepcopy(self, {id(self.setup): self.setup})

    def state_sha256(self) -> str:
        """Hash of the rows after all groups so far."""
        self.learner.apply_waiting()
        return state_sha256([self.learner.processor.store])

    def cost(self, parts: Collection[str], deeds: Collection[str] = ("predict", "learn")) -> Cost:
        """What some parts have cost, rankers as one, and the encoding of texts with the part that reads them."""
        self.learner.apply_waiting()
        found: dict[str, list[float]] = {}
        for (part, deed), (train, score) in self.clocks.seconds.items():
            if part in parts and deed in deeds:
                one = found.setdefault(part.split()[0], [0.0, 0.0])
                one[0], one[1] = one[0] + train, one[1] + score
        for part, seconds in self.setup.shared.get("encoding", {}).items():
            if part in parts:
                found.setdefault(part, [0.0, 0.0])[0] += seconds
        return {part: (train, score) for part, (train, score) in found.items()}

    def slate(self, request: Request) -> EngineSlate:
        """The engine's slate of a request."""
        if self._slate is None or self._slate[0] != request.number:
            view = self.view(request)
            self._slate = (request.number, self.learner.slate(view, request.t_ms))
        return self._slate[1]

    def learn(self, request: Request, arrival: Arrival) -> bool:
        """Takes in a group, once; True if this call did it."""
        if self._learnt == request.number:
            return False
        learner, wanted = self.learner, bool(arrival.group.positive.any())
        slate = None
        if wanted and learner.learning and self.share.takes_next():
            slate = self.slate(request) if self.whole else GROUP_ONLY
        view = slate.view if self.whole and slate is not None else self.view(request)
        learner.add_items(self.setup.log.item_ids[len(learner.table) : arrival.pool])
        learner.learn(arrival.group, arrival.events(), view, slate)
        self._learnt = request.number
        return True


class EngineArm:
    """A ranker of a shared pass."""

    drives_state = True
    refresh_cpu_s = 0.0

    def __init__(self, name: str, shared: EnginePass, arm: str) -> None:
        self.name, self.shared, self.arm = name, shared, arm
        self.trained_share = shared.share.share

    @property
    def cost(self) -> Cost:
        """Of what every arm needs, of the blocks that it sees, and of its own ranker."""
        learner = self.shared.learner
        blocks = learner.engine.arms[self.arm].blocks
        parts = (name for name, part in learner.parts.items() if not part.plugs().keys().isdisjoint(blocks))
        gate = [GATE] if self.arm == MAIN else []
        return self.shared.cost({*BASE_PARTS, *blocks, *parts, ranker_part(self.arm), *gate})

    @property
    def gate(self) -> dict[str, dict[str, Any]]:
        """How the parts stand (model/gate.py), of the whole engine."""
        if self.arm != MAIN:
            return {}
        return {name: one.told() for name, one in self.shared.learner.engine.gate.standing().items()}

    @property
    def note(self) -> str:
        """The same in words, of parts of which something is known."""
        return "; ".join(sentence(name, told) for name, told in self.gate.items() if is_known(told))

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    def score(self, request: Request) -> Slate:
        """Scores of the arm's own pool, one head a list."""
        with self.shared.asked():
            return answer(self.shared, request, self.arm)

    def learn(self, request: Request, arrival: Arrival) -> None:
        """The first arm of a pass learns for all."""
        self.shared.learn(request, arrival)


class FrozenArm(EngineArm):
    """The engine as it stood at the split; a copy of the shared pass goes on without learning."""

    drives_state = False

    def __init__(self, name: str, shared: EnginePass) -> None:
        super().__init__(name, shared, MAIN)
        self._warm = 0
        self._seen = 0

    def start(self, split_ms: int) -> None:
        """Copies the pass and freezes the copy."""
        self._warm = self._seen
        self.shared = self.shared.copied()
        self.shared.learner.freeze()

    def learn(self, request: Request, arrival: Arrival) -> None:
        """See EngineArm."""
        super().learn(request, arrival)
        self._seen += 1
        self.trained_share = self.shared.share.share * (self._warm / self._seen if self._warm else 1.0)


class WeeklyFrozenArm:
    """The engine as one pass over everything before a week leaves it, fixed within the week.

    A pass is a function of what came, in order: each week's goes on where that of the week before stood.

    Args:
        untrained: a pass that has seen nothing.
    """

    name = "weekly_frozen"

    def __init__(self, untrained: EnginePass) -> None:
        self._pass, self.trained_share = untrained, untrained.share.share
        self._past: list[tuple[Request, Arrival]] = []
        self._taken = 0
        self._current: EnginePass | None = None
        self._from_ms = self._until_ms = 0
        self.refresh_cpu_s = 0.0

    def start(self, split_ms: int) -> None:
        """The first week begins at the split."""
        self._from_ms = self._until_ms = split_ms

    def score(self, request: Request) -> Slate:
        """Trains anew when a new week has begun."""
        if self._current is None or request.t_ms >= self._until_ms:
            before = time.process_time()
            self._current = self._trained()
            self._current.learner.freeze()
            while self._until_ms <= request.t_ms:
                self._until_ms += WEEK_MS
            self.refresh_cpu_s += time.process_time() - before
            self._tell()
        return answer(self._current, request, MAIN)

    def _tell(self) -> None:
        """A training takes longer than anybody waits for a word."""
        setup = self._pass.setup
        weeks = 1 + (int(setup.log.group_t_ms[-1]) - self._from_ms) // WEEK_MS
        setup.say(f"{self.name}: weeks", (self._until_ms - self._from_ms) // WEEK_MS, weeks)

    def _trained(self) -> EnginePass:
        return self._after(len(self._past))

    def _after(self, groups: int) -> EnginePass:
        """The pass as it is after the first groups of the past, never fewer than before."""
        for past, arrival in self._past[self._taken : groups]:
            self._pass.learn(past, arrival)
        self._taken = groups
        return self._pass.copied()

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Keeps the group for the next training; histories and signals take it in at once."""
        self._past.append((request, arrival))
        if self._current is not None:
            self._current.learn(request, arrival)


class RetrainArm(WeeklyFrozenArm):
    """The engine trained offline on everything before each week, by epochs, fixed within the week."""

    name = "retrain"

    def __init__(self, untrained: EnginePass) -> None:
        super().__init__(untrained)
        self._epochs: list[dict[str, int]] = []

    def _trained(self) -> EnginePass:
        taken = before_slice(len(self._past))
        shared = self._after(taken)
        self._epochs.append(fit(shared.learner, shared.learn, self._past, taken))
        return shared

    @property
    def note(self) -> str:
        """How long it trained; in reports of before the name was that of `weekly_frozen`."""
        of = ", ".join(f"{one.get('hstu', 0)} and {one['ranker']}" for one in self._epochs)
        return f"trained {len(self._epochs)} times from scratch; epochs of HSTU and ranker: {of}" if of else ""


class SequenceArm:
    """A lone backbone, incremental: no ranker, no signals."""

    refresh_cpu_s = 0.0

    def __init__(self, name: str, setup: Setup, settings: Settings, shared: Callable[[], EnginePass | None]) -> None:
        self.name, self._setup, self._settings, self._shared = name, setup, settings, shared
        self._own: SequenceLearner | None = None
        self._train_s = self._score_s = 0.0
        self.trained_share, self._share = setup.learn_share, Share(setup.learn_share)

    def _lent(self) -> SequenceLearner | None:
        """The learner of the shared pass where it trains the same backbone."""
        shared = self._shared()
        if shared is None or not shared.whole or shared.settings.model.backbone != self.name:
            return None
        return shared.learner.sequence

    @property
    def cost(self) -> Cost:
        """Of its learning, wherever it was done, and of its own answers."""
        shared, train = self._shared(), self._train_s
        if shared is not None and self._lent() is not None:
            train = shared.cost(("hstu",), ("learn",)).get("hstu", (0.0, 0.0))[0]
        return {self.name: (train, self._score_s)}

    @property
    def learner(self) -> SequenceLearner:
        """The lent one or its own."""
        lent = self._lent()
        if lent is None and self._own is None:
            self._own = SequenceLearner(self._settings.model, text_dim=self._settings.ranker.text_dim)
            self._own.prepare()
        return lent or self._own  # type: ignore[return-value]

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    def score(self, request: Request) -> Slate:
        """Scores of all candidates; items that the backbone never saw rank last."""
        before = time.process_time()
        scores = np.full(request.pool, -np.inf, np.float32)
        known = self.learner.scores(wanted_history(request.view()), request.t_ms)[: request.pool]
        scores[: len(known)] = known
        self._score_s += time.process_time() - before
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Learns the group unless the shared pass does."""
        if self._lent() is None:
            before = time.process_time()
            texts, item_ids = replay_texts(self._setup), self._setup.log.item_ids
            for index in range(len(self.learner.items), arrival.pool):
                if (text := texts.get(item_ids[index])) is not None:
                    self.learner.set_text(index, text)
            if arrival.group.positive.any() and self._share.takes_next():
                self.learner.learn(arrival.group)
            else:
                self.learner.observe(arrival.group)
            self._train_s += time.process_time() - before


class GraphArm:
    """The graph's own ranking; in a pass of its own neither engine nor backbone runs."""

    drives_state = True
    refresh_cpu_s = 0.0

    def __init__(self, name: str, shared: EnginePass) -> None:
        self.name, self.shared, self.trained_share = name, shared, shared.share.share
        self._score_s = 0.0

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    @property
    def cost(self) -> Cost:
        """Of state, graph and profiles, from which its join with the graph is learnt, and of its own answers."""
        found = self.shared.cost(("state", "graph", "profiles"), ("learn",))
        train, _ = found.get("graph", (0.0, 0.0))
        return found | {"graph": (train, self._score_s)}

    def score(self, request: Request) -> Slate:
        """What memories and links say of every candidate."""
        before = time.process_time()
        view = self.shared.view(request)
        graph = self.shared.learner.graph
        scores = np.zeros(request.pool, np.float32)
        if graph is not None:
            known = graph.scores(view, request.t_ms)
            scores[: len(known)] = known[: request.pool]
        self._score_s += time.process_time() - before
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """See EngineArm."""
        self.shared.learn(request, arrival)


def answer(shared: EnginePass, request: Request, arm: str) -> Slate:
    """A ranker's slate, one head for each list."""
    slate = shared.slate(request)
    if arm == MAIN:
        candidates, scores = slate.candidates, slate.scores
    else:
        candidates, scores = shared.learner.engine.score(slate, arm)
    rankings = {head: Ranking(scores[n], candidates) for n, head in enumerate(HEADS)}
    return Slate(rankings["overall"], rankings["novel"], rankings["repeat"])


def seeded(settings: Settings, seed: int) -> Settings:
    """The settings with every seed shifted."""
    sections = {name: getattr(settings, name) for name in ("model", "ranker", "graph")}
    changed = {name: s.model_copy(update={"seed": s.seed + seed}) for name, s in sections.items()}
    return settings.model_copy(update=changed)


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


def without_gate(settings: Settings) -> Settings:
    """The settings with nothing compared."""
    gate = settings.model.gate.model_copy(update={"mode": "off"})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"gate": gate})})


def _switched(name: str, settings: Settings, chosen: Mapping[str, str]) -> Settings:
    try:
        return switched(settings, chosen)
    except ConfigError as error:
        raise InputError(f"--arms got {name!r}: {error}") from None
