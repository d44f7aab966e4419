"""Every worker owns a partition where there are enough, whoever was there first."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from faust.assignor.client_assignment import CopartitionedAssignment
from faust.assignor.copartitioned_assignor import CopartitionedAssignor
from tests.stream.test_app import shop_records

from driftline.stream.app import WorkerApp
from driftline.stream.ops.doctor import examine
from driftline.stream.state.layout import layout_of


def test_doctor_names_folders_of_partitions_that_the_state_does_not_have(world: Any) -> None:
    world.produce(shop_records(3))
    root = world.settings.state.root
    for name in ("partition-0", "partition-7", "partition-0.bak", "partition-x"):
        (root / name).mkdir(parents=True)
    (root / "layout.json").write_bytes(orjson.dumps(layout_of(world.settings, 1)))
    said = [finding.detail for finding in examine(world.settings) if finding.part == "state"]
    assert f"1 partitions in {root}" in said
    assert any(
        "partition-0.bak, partition-7, partition-x are none of the state's 1 partitions" in text for text in said
    )


@pytest.mark.parametrize(("partitions", "most"), [(4, 6), (5, 5), (12, 5)])
def test_no_worker_stands_by_while_another_owns_more_than_its_share_as_workers_join_and_leave(
    world: Any, partitions: int, most: int
) -> None:
    replicas = WorkerApp(world.settings, world.bootstrap, partitions).assignor.replicas
    names = {"interactions", "interactions.by-item"}
    held: dict[str, CopartitionedAssignment] = {}
    for count in [*range(1, most + 1), *range(most - 1, 0, -1)]:
        held = {f"w{n}": held.get(f"w{n}", CopartitionedAssignment(topics=names)) for n in range(count)}
        held = dict(CopartitionedAssignor(names, held, partitions, replicas).get_assignment())
        owned = [sorted(held[name].actives) for name in held]
        assert sorted(number for numbers in owned for number in numbers) == list(range(partitions))
        assert max(map(len, owned)) <= -(-partitions // count)
        assert all(owned) or count > partitions
