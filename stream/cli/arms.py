"""What `driftline replay` says of its arms: who wins, a table, and what a reader of it should know."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from driftline.stream.cli.common import out
from driftline.stream.replay.named import about


def print_arms(metrics: dict[str, Any]) -> None:
    """The verdict first, then the figures, then a line on each arm."""
    from driftline.stream.replay.audit import AUDITS
    from driftline.stream.replay.report import choices_line, goals_line, intervals_line, profiles_line, reachable_line

    out.print(metrics["verdict"], soft_wrap=True)
    out.print(_table(metrics))
    width = max(map(len, metrics["arms"]))
    for name, arm in metrics["arms"].items():
        out.print(f"{name:{width}}  {about(name)}", soft_wrap=True)
        for line in (f"void: {arm['void']}" if "void" in arm else "", arm.get("note", "")):
            if line:
                out.print(f"{'':{width}}  {line}", soft_wrap=True)
    if words := goals_line(metrics):
        out.print(f"goals: {words}", soft_wrap=True)
    if words := choices_line(metrics["protocol"]).lstrip(",; "):
        out.print(f"choices: {words}", soft_wrap=True)
    out.print(f"intervals: {intervals_line(metrics['protocol'])}", soft_wrap=True)
    out.print(f"profiles: {profiles_line(metrics['protocol']['profiles'])}", soft_wrap=True)
    if "reachable" in metrics:
        out.print(f"reachable: {reachable_line(metrics)}", soft_wrap=True)
    found = {metrics["leak_audit"][name] for name in AUDITS}
    out.print(f"leak audit: {'; '.join(sorted(found))}", soft_wrap=True)


def _table(metrics: dict[str, Any]) -> Table:
    """NDCG@10 of each arm by list, and the CPU time that it took to learn and to score."""
    session = metrics["protocol"].get("session") is not None
    more = ("session HR@20", "NDCG@20") if session else ()
    table = Table("arm", "novel", "repeat", "overall", *more, "CPU", title="NDCG@10", title_justify="left")
    for name, arm in metrics["arms"].items():
        cells = [_cell(arm.get(which, {})) for which in ("novel", "repeat", "overall")]
        cells += [_cell(arm.get("session", {}), metric) for metric in ("hr@20", "ndcg@20")] if session else []
        table.add_row(
            f"{name}, void" if "void" in arm else name,
            *cells,
            f"{arm.get('train_cpu_s', 0) + arm.get('score_cpu_s', 0):,.0f} s",
        )
    return table


def _cell(values: dict[str, Any], metric: str = "ndcg@10") -> str:
    return "" if values.get(metric) is None else f"{values[metric]:.4f}"
