"""Replay: a historical log through arms, strictly predict-then-learn, to `metrics.json` and `report.html`.

    read, drop duplicates -> cut into groups -> one pass for all arms that share work (a seed each) -> summary -> report
                                             -> simple arms, leak audit: beside it where there is a second CPU

Every arm's rows of metrics are kept in OUT/arms, so `resume` computes only what is missing. The state hash comes from
a Processor that read the whole log in order: the same object that a worker drives. With `adoptions` that Processor
changes graph versions where a worker did, and ends in the worker's state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.configs.load import config_sha256
from driftline.configs.settings import Settings
from driftline.graph.arrays import Int64
from driftline.llm.profile import read_header
from driftline.llm.prompts import load_prompts
from driftline.stream.convert.words import unset_actions
from driftline.stream.durable import make_folder
from driftline.stream.learn.learner import learning_sha256
from driftline.stream.ops.revision import code_sha256, git_revision
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay.adoptions import file_records, follow, read_adoptions
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.aside import Aside, cores
from driftline.stream.replay.audit import AuditResult, audit
from driftline.stream.replay.baselines import EASE_ITEMS
from driftline.stream.replay.content import content_of, data_of
from driftline.stream.replay.forecast import forecast
from driftline.stream.replay.goals import worth_function
from driftline.stream.replay.inputs import profile_sources
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import run
from driftline.stream.replay.registry import SIMPLE, build_arm, default_arms
from driftline.stream.replay.report import write_report
from driftline.stream.replay.results import Saved, arm_path, load, save
from driftline.stream.replay.source import Input, Options, read
from driftline.stream.state.store import MemoryStore, state_sha256

LOG = logging.getLogger(__name__)
AUDIT_ROWS = 6_000
"""Rows of the leak audit's short log at most, about."""
AUDIT_LEAST = 500
AUDIT_SHARE = 1 / 36
"""And as a share of the log: the audit replays the short log nine times, a quarter of the log together."""
BESIDE_ROWS = 30_000
"""A log of fewer rows is not worth a second process, which takes some seconds to start."""
AUDIT_PUBLISH = 50
"""Groups between two graph versions in the audit's short log, so that adoptions are audited as well."""
AUDIT_LATE_MS = 7 * 86_400_000
"""Late window there: the short log has few groups within an hour. What is later still is only counted, as live."""
Progress = Callable[[str, int, int], None]


def replay(
    options: Options,
    settings: Settings,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Run the arms and write the report.

    Args:
        options: what to run.
        settings: the whole configuration.
        progress: called with (what, done, total).
        tell: is given which actions the configuration does not set, and what there is to do, before any arm begins.

    Returns:
        The content of metrics.json.

    Raises:
        InputError: a file, an arm's name, the split or the folder is wrong, or candidates are to come from an items
            file that is not given.
    """
    git_revision()  # that of the code that runs now, whatever is committed meanwhile
    started = time.perf_counter()
    say = progress or (lambda what, done, total: None)
    make_folder(options.out)
    if options.profiles is not None:
        read_header(options.profiles)
    data = read(options, settings)
    if options.state_only:
        return _state_only(data, options, settings, say, started)
    names = _arms(options, len(data.log.item_ids))
    random = _families(names, data, settings)
    codes, actions = data.columns.action
    rows = np.bincount(codes, minlength=len(actions)).tolist()
    if words := unset_actions(settings, Counter(dict(zip(actions, rows, strict=True)))):
        tell(words)
    tell(forecast(data, random, options, _audit_rows(data, options)))
    aside = _aside(names, data, options, settings, say)
    try:
        followed = _follow(options, settings, len(data.log) + data.duplicates, say)
        runs, checked = _run_all(names, random, data, options, settings, say, aside)
    finally:
        if aside is not None:
            aside.stop()
    made = [saved for seeds in runs.values() for saved in seeds.values() if saved.state_sha256]
    origin: dict[str, Any]
    if followed is not None:
        state, origin = followed[0], {"source": "adoptions", "adoptions": followed[1]}
    elif made:
        state, origin = made[0].state_sha256, {"source": "engine", "adoptions": made[0].adoptions}
    else:
        state, origin = _drive_state(data.log, settings, say), {"source": "processor", "adoptions": 0}
    metrics = content_of(runs, data, options, settings, checked)
    metrics["seconds"] = round(time.perf_counter() - started, 3)
    metrics["state_sha256"] = state
    metrics["state"] = origin
    _write(options, metrics)
    write_report(options.out / "report.html", metrics)
    return metrics


def _write(options: Options, metrics: dict[str, Any]) -> None:
    (options.out / "metrics.json").write_bytes(orjson.dumps(metrics, option=orjson.OPT_INDENT_2))


def _state_only(data: Input, options: Options, settings: Settings, say: Progress, started: float) -> dict[str, Any]:
    """The state of the log and nothing else: no arm runs, and metrics.json says so little."""
    before = time.perf_counter()
    followed = _follow(options, settings, len(data.log) + data.duplicates, say)
    state, adopted = (_drive_state(data.log, settings, say), 0) if followed is None else followed
    now = time.perf_counter()
    metrics = {
        "data": data_of(data),
        "protocol": {"config_sha256": config_sha256(settings), "commit": git_revision(), "code_sha256": code_sha256()},
        "events_per_second": round(len(data.log) / max(1e-9, now - before), 1),
        "seconds": round(now - started, 3),
        "state_sha256": state,
        "state": {"source": "processor" if followed is None else "adoptions", "adoptions": adopted},
    }
    _write(options, metrics)
    return metrics


def _run_all(
    names: Sequence[str],
    random: dict[str, bool],
    data: Input,
    options: Options,
    settings: Settings,
    say: Progress,
    aside: Aside | None,
) -> tuple[dict[str, dict[int, Saved]], AuditResult | None]:
    """All arms and seeds and the leak audit; with a child at work, what it does is waited for in the end."""
    runs: dict[str, dict[int, Saved]] = {name: {} for name in names}

    def both(what: str, done: int, total: int) -> None:
        if aside is not None:
            aside.poll()
        say(what, done, total)

    for seed in options.seeds:
        due = [name for name in names if random[name] or (seed == options.seeds[0] and aside is None)]
        for name, saved in _run_seed(due, seed, data, options, settings, both).items():
            runs[name][seed] = saved
    if aside is None:
        return runs, _audit(names, data, options, settings, say)
    checked = aside.result()
    simple = [name for name in names if not random[name]]
    for name, saved in _run_seed(simple, options.seeds[0], data, options, settings, say, made=True).items():
        runs[name][options.seeds[0]] = saved
    return runs, checked


def _aside(names: list[str], data: Input, options: Options, settings: Settings, say: Progress) -> Aside | None:
    """A child for simple arms and audit, where there is a CPU for it and an engine's pass to run beside."""
    simple = [name for name in names if name in SIMPLE.names]
    rest = len(simple) < len(names)
    worth = len(data.log) >= BESIDE_ROWS and cores() > 1 and (simple or options.audit_rows != 0)
    return Aside(options, settings, names, simple, say) if rest and worth else None


def beside(
    options: Options, settings: Settings, names: list[str], passed: list[str], say: Progress
) -> AuditResult | None:
    """What a child does: some arms of the first seed, to the folder of results, and the audit of all."""
    data = read(options, settings)
    _run_seed(passed, options.seeds[0], data, options, settings, say, kind="simple arms")
    return _audit(names, data, options, settings, say)


def _arms(options: Options, items: int) -> list[str]:
    """The arms to run. EASE can't take a large catalogue: named it is refused, as a default one it is left out."""
    names = list(options.arms) or default_arms()
    if items > EASE_ITEMS and "ease_recent" in names:
        what = f"arm 'ease_recent' inverts an items x items matrix of at most {EASE_ITEMS} items; the log has {items}"
        if options.arms:
            raise InputError(f"{what}: leave it out of --arms")
        LOG.warning("%s: it is left out", what)
        names.remove("ease_recent")
    return names


def _families(names: Sequence[str], data: Input, settings: Settings) -> dict[str, bool]:
    """Whether each arm is random; a name that no family knows is an error before anything runs."""
    bare = Setup(data.log, settings)
    return {name: name not in SIMPLE.names and build_arm(name, bare)[1].random for name in names}


def _run_seed(
    names: Sequence[str],
    seed: int,
    data: Input,
    options: Options,
    settings: Settings,
    say: Progress,
    made: bool = False,
    kind: str = "arms",
) -> dict[str, Saved]:
    """One pass over the log for the arms that are not on disk yet; `made` = this run has put them there.

    `kind` names them where its progress is shown: two passes at once have names of their own.
    """
    if not names:
        return {}
    key = _key(data, options, settings)
    paths = {name: arm_path(options.out / "arms", name, seed, key) for name in names}
    missing = [name for name in names if not ((made or options.resume) and paths[name].is_file())]
    if missing:
        started = time.perf_counter(), time.process_time()
        setup = data.setup(data.log, settings, seed, options.usable_profiles, say)
        arms = [build_arm(name, setup)[0] for name in missing]
        data.keep(setup)
        result = run(
            data.log,
            arms,
            data.split_ms,
            lambda done, total: say(f"seed {seed}: {len(missing)} {kind}", done, total),
            worth_function(settings.goals, data.log),
            data.scope,
        )
        cost = time.perf_counter() - started[0], time.process_time() - started[1]
        state, adopted = setup.shared.get("state_sha256"), setup.shared.get("adoptions")
        for name, arm in zip(missing, arms, strict=True):
            if state and adopted and getattr(arm, "drives_state", False):
                save(paths[name], name, result, cost, state(), adopted())
            else:
                save(paths[name], name, result, cost, "", None)
    return {name: load(paths[name]) for name in names}


def _key(data: Input, options: Options, settings: Settings) -> str:
    """Hash of everything but seed and arm that a result depends on: a commit of docs or another port is no part."""
    parts = [
        code_sha256(),
        data.sha256,
        None if options.items is None else hashlib.sha256(options.items.read_bytes()).hexdigest(),
        data.split_ms,
        dataclasses.astuple(data.scope),
        options.learn_share,
        options.candidates,
        options.limit,
        (options.hold_out_items, options.seeds[0]) if options.hold_out_items else None,
        learning_sha256(settings),
        settings.model_dump(
            mode="json",
            include={"goals": True, "peers": True, "encoder": {"model", "max_tokens"}, "model": {"gate"}},
        ),
        load_prompts(settings.profiles.prompts).sha256,
        None if options.profiles is None else hashlib.sha256(options.profiles.read_bytes()).hexdigest(),
    ]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _follow(options: Options, settings: Settings, total: int, say: Progress) -> tuple[str, int] | None:
    """state_sha256 under the given adoptions and how many of them there were; None without a file of them.

    Raises:
        InputError: the file of adoptions is wrong, or belongs to a longer log.
    """
    if options.adoptions is None:
        return None
    adoptions = read_adoptions(options.adoptions, settings)
    records = file_records(options.events, options.limit) if options.records is None else options.records
    state, adopted = follow(records, adoptions, settings, lambda done: say("state", done, total))
    if adopted < len(adoptions) and options.limit is None:
        raise InputError(
            f"{options.adoptions} has an adoption at offset {adoptions[adopted].offset}, past the end of "
            f"{options.events}; expected the events that the worker read, from the first on"
        )
    return state, adopted


def _drive_state(log: EventLog, settings: Settings, say: Progress) -> str:
    """Hash of the state after the whole log went through a Processor."""
    store = MemoryStore()
    processor = Processor(settings, store)
    step = settings.state.epoch_events
    for start in range(0, len(log), step):
        rows = range(start, min(start + step, len(log)))
        processor.commit(processor.apply([Record(event.offset, event) for event in map(log.event, rows)]))
        say("state", rows.stop, len(log))
    return state_sha256([store])


def in_proportion(rows: int) -> int:
    """Rows of the leak audit's short log for a log of so many."""
    return min(AUDIT_ROWS, max(AUDIT_LEAST, round(AUDIT_SHARE * rows)))


def _audit_rows(data: Input, options: Options) -> int:
    return in_proportion(len(data.log)) if options.audit_rows is None else options.audit_rows


def _audit(
    names: Sequence[str], data: Input, options: Options, settings: Settings, say: Progress
) -> AuditResult | None:
    rows = _audit_rows(data, options)
    if rows == 0:
        return None
    graph = settings.graph.model_copy(update={"publish_groups": min(AUDIT_PUBLISH, settings.graph.publish_groups)})
    late_ms = settings.state.late_ms if settings.state.ttl_days else max(settings.state.late_ms, AUDIT_LATE_MS)
    state = settings.state.model_copy(update={"late_ms": late_ms})
    settings = settings.model_copy(update={"graph": graph, "state": state})

    def arms_of(log: EventLog) -> list[Any]:
        setup = data.setup(log, settings, options.seeds[0], options.usable_profiles)
        arms = [build_arm(name, setup)[0] for name in names]
        data.keep(setup)
        return arms

    def from_file(log: EventLog, groups: Int64) -> NDArray[np.bool_]:
        setup = data.setup(log, settings, options.seeds[0], options.usable_profiles)
        return np.array([source == "file" for source in profile_sources(setup, groups)])

    return audit(
        data.columns,
        data.log_of,
        arms_of,
        rows,
        seed=options.seeds[0],
        progress=lambda done, total: say("leak audit", done, total),
        from_file=from_file,
        scope=dataclasses.replace(data.scope, left_out=None, share=1.0),
    )
