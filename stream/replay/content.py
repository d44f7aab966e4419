"""The content of `metrics.json`, from what the arms left and what was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from driftline.configs.load import config_sha256
from driftline.configs.settings import Settings
from driftline.stream.generate.optimum import reachable
from driftline.stream.ops.revision import code_sha256, git_revision
from driftline.stream.replay.answers import answers
from driftline.stream.replay.audit import AUDITS, AuditResult
from driftline.stream.replay.inputs import profile_sources
from driftline.stream.replay.protocol import LISTS, Facts
from driftline.stream.replay.registry import SIMPLE
from driftline.stream.replay.results import Saved
from driftline.stream.replay.sessions import HOUR_MS
from driftline.stream.replay.source import Input, Options
from driftline.stream.replay.summary import (
    arm_summary,
    compare,
    drift,
    freshness,
    incremental_claim,
    intervals_of,
    resampling,
    table,
)
from driftline.stream.replay.verdict import verdict

LEFT_OUT = "not run: left out with --no-audit"
"""What stands in place of an audit that nobody wanted."""


def content_of(
    runs: Mapping[str, Mapping[int, Saved]],
    data: Input,
    options: Options,
    settings: Settings,
    checked: AuditResult | None,
) -> dict[str, Any]:
    """Everything but the clock and the state, which the replay knows."""
    log, seed, profiles = data.log, options.seeds[0], options.usable_profiles
    joined = table(runs, seed)
    sources = profile_sources(data.setup(log, settings, seed, profiles), joined.facts.number)
    cis = intervals_of(joined)
    per_seed: dict[str, Any] = {}
    for one in options.seeds:
        single = table({name: {one: of.get(one, of[seed])} for name, of in runs.items()}, seed)
        per_seed[str(one)] = {name: arm_summary(single, name, data.split_ms, {}) for name in runs}
    comparisons = []
    for comparison in compare(joined, SIMPLE.names):
        entry = dataclasses.asdict(comparison)
        comparisons.append({name: _rounded(value) for name, value in entry.items()})
    passes = {saved.cost: saved for of in runs.values() for saved in of.values()}
    wall, cpu = (round(sum(clock), 3) for clock in zip(*passes, strict=True))
    metrics: dict[str, Any] = {
        "data": data_of(data),
        "protocol": {
            "split": options.split,
            "split_ms": data.split_ms,
            "choices": {"span": list(options.choices), "left_out_ms": data.scope.left_out},
            "group": True,
            "session": session_of(options, joined.facts),
            "learn_share": options.learn_share,
            "limit": options.limit,
            "command": options.command,
            "config": settings.name,
            "text": data.has_text and settings.ranker.text_dim > 0,
            "candidates": options.candidates,
            "groups": len(joined.facts.number),
            "one_item_groups": bool((joined.facts.relevant[:, LISTS.index("overall")] <= 1).all()),
            "seed": seed,
            "seeds": list(options.seeds),
            "intervals": resampling(joined),
            "profiles": {
                "file": None if profiles is None else profiles.name,
                "groups": {source: sources.count(source) for source in ("file", "template", "none")},
            },
            "config_sha256": config_sha256(settings),
            "commit": git_revision(),
            "code_sha256": code_sha256(),
        },
        "arms": {name: arm_summary(joined, name, data.split_ms, cis[name]) for name in runs},
        "comparisons": comparisons,
        "seeds": per_seed,
        "freshness": freshness(joined),
        "drift": drift(log, data.split_ms),
        "leak_audit": dict.fromkeys(AUDITS, LEFT_OUT) if checked is None else dataclasses.asdict(checked),
        "events_per_second": round(
            sum(one.events for one in passes.values()) / max(1e-9, sum(one.seconds for one in passes.values())), 1
        ),
        "compute_seconds": {"wall": wall, "cpu": cpu},
    }
    for name, reason in joined.void.items():
        metrics["arms"][name]["void"] = reason
    notes = {name: saved.result.note for name, of in runs.items() for saved in of.values() if saved.result.note}
    for name, note in notes.items():
        metrics["arms"][name]["note"] = note
    for name, of in runs.items():
        if told := of.get(seed, next(iter(of.values()))).result.gate:
            metrics["arms"][name]["gate"] = told
    if settings.signals.one_id_space:
        metrics["answers"] = answers(log, joined)
    if (reachable := reachable_of(data, options)) is not None:
        metrics["reachable"] = reachable
    metrics = {"verdict": verdict(metrics, SIMPLE.names)} | metrics
    claim = incremental_claim(joined)
    if claim is not None:
        metrics["incremental_learning"] = claim
    return metrics


def reachable_of(data: Input, options: Options) -> dict[str, Any] | None:
    """What the true probabilities reach on a stream of `driftline generate`, over the same groups; None elsewhere."""
    if options.limit is not None or options.hold_out_items or options.session or options.candidates != "seen":
        return None
    return reachable(options.events, data.sha256, data.split_ms, data.scope.left_out)


def session_of(options: Options, facts: Facts) -> dict[str, Any] | None:
    """What the session protocol asked for, None without it."""
    if not options.session:
        return None
    hours = len(np.unique(facts.session_ms // HOUR_MS))
    return {"asked": options.session, "share": options.session_share, "targets": len(facts.number), "hours": hours}


def data_of(data: Input) -> dict[str, Any]:
    """What was read."""
    log = data.log
    return {
        "events": len(log),
        "duplicates": data.duplicates,
        "users": len(log.user_ids),
        "items": len(log.item_ids),
        "sha256": data.sha256,
        "first_ms": int(log.t_ms[0]),
        "last_ms": int(log.t_ms[-1]),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return value
