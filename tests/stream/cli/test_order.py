"""`driftline produce` and the order of time: refused with what would be lost, sorted, or sent as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.stream.cli import app
from driftline.stream.kafka.reading import read_all

SECONDS = [1_600_090_000, 1_600_000_000, 1_600_000_060, 1_600_180_000]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Rows sorted by customer, with columns of their own."""
    path = tmp_path / "export.csv"
    rows = [f"c{n // 2},s{n},{second}" for n, second in enumerate(SECONDS)]
    path.write_text("\n".join(["customer,sku,ts", *rows]) + "\n")
    return path


def run(world: Any, path: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["produce", "--events", str(path), "-c", str(world.config), *more])


def sent(world: Any) -> list[str]:
    records = read_all(world.settings.broker, world.bootstrap, "interactions")
    return [orjson.loads(record.value)["item_id"] for record in records]


def test_a_file_out_of_order_is_refused_until_it_is_said_what_to_do(world: Any, shop: Path) -> None:
    world.create_topics()
    refused = run(world, shop)
    assert isinstance(refused.exception, InputError)
    for words in (f"{shop}: 2 of 4 rows are earlier", "2 (50.0%) would come more than state.late_ms, 60 min, too late",
                  "Nothing was sent", "--sort", "--as-it-is"):  # fmt: skip
        assert words in str(refused.exception)
    assert sent(world) == []
    assert run(world, shop, "--sort", "--as-it-is").exit_code == 2
    assert run(world, shop, "--as-it-is").exit_code == 0
    assert sent(world) == ["s0", "s1", "s2", "s3"]


def test_a_file_is_sorted_on_the_way_where_that_is_said(world: Any, shop: Path) -> None:
    assert run(world, shop, "--sort").stdout.startswith("sent 4 events and 0 items")
    assert sent(world) == ["s1", "s2", "s0", "s3"]


def test_a_span_of_a_file_that_is_in_order_is_sent(world: Any, shop: Path) -> None:
    assert run(world, shop, "--until", "2020-09-14").exit_code == 0, "two rows of one day"
    assert sent(world) == ["s1", "s2"]


def test_a_file_in_the_schema_keeps_its_unknown_fields_when_it_is_sorted(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [{"user_id": "u", "item_id": f"i{n}", "timestamp_ms": 1000 * s, "n": n} for n, s in enumerate(SECONDS)]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    assert isinstance(run(world, path).exception, InputError)
    assert run(world, path, "--sort").exit_code == 0
    records = read_all(world.settings.broker, world.bootstrap, "interactions")
    assert [orjson.loads(record.value)["n"] for record in records] == [1, 2, 0, 3]


def test_validate_tells_of_order_and_of_values_without_an_action(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [{"user_id": "u", "item_id": f"i{n}", "timestamp_ms": 1000 * s, "value": n} for n, s in enumerate(SECONDS)]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0
    assert "2 of 4 rows are earlier than a row above them; sent so, 2 (50.0%)" in result.stdout
    assert "4 rows have a value and no action that says what it means: each counts as an 'interact'" in result.stdout
    assert "ok, but out of order" in result.stdout
    report = orjson.loads(CliRunner().invoke(app, ["validate", str(path), "--json"]).stdout)
    assert report["order"] == {"rows": 4, "earlier_than_a_row_above": 2, "too_late": 2}
    assert report["unnamed_values"] == 4


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--zone", "Mars/Olympus"], "got zone 'Mars/Olympus'"),
        (["--decimal", "x"], "'.' or ','"),
        (["--encoding", "ebcdic-7"], "got encoding 'ebcdic-7'"),
        (["--map", "userId"], "expected FIELD=COLUMN"),
    ],
)
def test_an_option_that_says_nothing_is_refused(shop: Path, option: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["validate", str(shop), *option], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert words in result.output
