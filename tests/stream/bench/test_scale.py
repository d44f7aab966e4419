"""The bench of many users: what it writes is what a worker would have, and it goes on from there."""

from __future__ import annotations

import pytest

from driftline.configs.settings import Graph, Model, Settings
from driftline.graph.chunks import whole_users
from driftline.graph.rows import decode_user
from driftline.stream.bench import scale, scale_trainer
from driftline.stream.learn.kept import KeptRows
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import RocksStore, partition_path


def test_the_rows_that_it_writes_are_whole_and_go_on(tmp_path) -> None:
    settings = Settings.model_validate({"state": {"root": tmp_path, "cache_users": 5}})
    scale._write(settings, 20, 100, 30)
    figures = scale.measure(settings, 20, 30, 1000)
    assert figures["opened_mb"] >= figures["before_mb"] > 0
    store = RocksStore(partition_path(tmp_path, 0), sync=False)
    rows = [decode_user(value) for _, value in whole_users(store)]
    assert sum(row.events for row in rows) == 20 * 100 + 1000
    assert all(len(row.events_array()) == row.events == sum(row.actions.values()) for row in rows)
    assert all((row.events_array()["t"][1:] >= row.events_array()["t"][:-1]).all() for row in rows)
    processor = Processor(settings, store)
    assert all(processor.items.name(int(key)).startswith("item-") for row in rows for key in row.events_array()["item"])
    store.close()


@pytest.mark.parametrize("groups", [0, 30])
def test_a_trainer_goes_on_with_these_rows_and_its_checkpoint_has_them_and_what_it_learnt(
    tmp_path, groups: int
) -> None:
    small = Settings(model=Model(backbone="off"), graph=Graph(weights="off"))
    settings = scale._within(small, tmp_path)
    scale._write(settings, 400, 100, 30)
    scale_trainer.write_trainer(settings)
    figures = scale_trainer.measure(settings, 400, 30, groups, scale.START_MS)
    assert figures["open_s"] > 0
    assert figures["rss_mb"] > 0
    (named,) = (settings.trainer.root / "rows").iterdir()
    kept = KeptRows(settings.trainer.root, int(named.name))
    rows = [decode_user(value) for _, value in whole_users(kept.store)]
    kept.close()
    learnt = figures["groups"] * scale_trainer.GROUP_EVENTS
    assert sum(row.events for row in rows) == 400 * 100 + learnt
    assert (learnt > 0) == (groups > 0)
    assert figures["checkpoint_mb_written"] >= figures["of_it_file_mb"] > 0
