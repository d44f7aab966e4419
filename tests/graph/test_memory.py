"""Weights of the graph as arrays: what torch would draw, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from driftline.configs.settings import Graph, Settings
from driftline.graph.memory import CODE_DIM, GraphMemory, frequencies
from driftline.graph.memory_net import MemoryNet, SideNet
from driftline.stream.owned.versions import decode_version, encode_version

SHAPES = (
    {},
    {"seed": 7},
    {"memory_dim": 48, "message_dim": 20, "time_dim": 5, "seed": 2**32 - 1},
    {"time_dim": 2, "shortest_period_h": 1 / 60, "longest_period_days": 3000.0},
)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_weights_are_those_that_torch_draws_for_these_layers(shape: dict[str, float]) -> None:
    settings = Graph(**shape)
    drawn = torch.nn.Module()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        drawn.user = SideNet(settings, settings.memory_dim + CODE_DIM)
        drawn.item = SideNet(settings, settings.memory_dim)
    ours = GraphMemory(settings).arrays
    assert list(ours) == list(drawn.state_dict())
    for name, expected in drawn.state_dict().items():
        # those that multiply and add in one step, or not, differ by the last bit
        np.testing.assert_allclose(ours[name], expected.numpy(), rtol=3e-7, atol=3e-8, err_msg=name)
    ends = math.log10(settings.shortest_period_h / 24), math.log10(settings.longest_period_days)
    expected = 2 * math.pi / torch.logspace(*ends, settings.time_dim)
    np.testing.assert_allclose(frequencies(settings), expected.numpy(), rtol=3e-7)


def test_the_first_version_is_the_same_on_every_machine() -> None:
    assert GraphMemory(Graph()).version()[:16] == "4faa20cdf6a203c4"


def test_a_version_does_not_change_and_does_not_depend_on_how_its_arrays_lie() -> None:
    model = GraphMemory(Graph())
    with pytest.raises(ValueError, match="read-only"):
        model.arrays["user.time.b"] += 1
    turned = GraphMemory(Graph(), {name: np.asfortranarray(weight) for name, weight in model.arrays.items()})
    sent = b"".join(out.value for out in encode_version(turned, {}))
    assert decode_version(Settings(), sent).sha256 == turned.version() == model.version()


def test_what_is_trained_begins_as_a_version_and_becomes_one_of_its_own() -> None:
    start = GraphMemory(Graph())
    net = MemoryNet(start)
    assert net.memory().version() == start.version()
    with torch.no_grad():
        net.item.time.b.add_(1)
    moved = net.memory()
    with torch.no_grad():
        net.item.time.b.add_(1)
    assert start.version() == GraphMemory(Graph()).version()
    assert moved.version() not in (start.version(), net.memory().version())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user.time.b": np.zeros(3, np.float32)}, r"user.time.b is float32 of the shape \(3,\), expected .* \(16,\)"),
        ({"user.time.b": np.zeros(16)}, "user.time.b is float64"),
        ({"surprise": np.zeros(3, np.float32)}, "got weights named .*, expected user.time.w"),
    ],
)
def test_weights_of_another_graph_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphMemory(Graph(), GraphMemory(Graph()).arrays | changed)


def test_a_worker_and_a_backfill_start_without_torch() -> None:
    loaded = "import sys, driftline.stream.worker, driftline.stream.backfill; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
