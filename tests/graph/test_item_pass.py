"""Items of a training step: the pass by hand gives the vectors and gradients of modules and autograd."""

import pytest
import torch

from driftline.configs.settings import Graph
from driftline.graph.embed import GraphReader
from driftline.graph.item_pass import item_vectors
from driftline.graph.learn import as_stored
from driftline.graph.memory import CODE_DIM, GraphMemory
from driftline.graph.memory_net import MemoryNet


def plain(side, reader, raw, before, then, code, text):
    """The oracle: every memory computed anew, its value that of the stream."""
    memory = side.update(torch.cat((side.messages(raw), before), 1))
    seen = raw.abs().sum(1, keepdim=True) > 0
    return reader.items(torch.where(seen, as_stored(memory, then), then), code, text)


@pytest.mark.parametrize("text_dim", [0, 24])
def test_vectors_and_gradients_of_items_by_hand_are_those_of_autograd(text_dim):
    settings = Graph(memory_dim=12, time_dim=6, message_dim=10, embed_dim=14)
    side, reader = MemoryNet(GraphMemory(settings)).item, GraphReader(settings, text_dim)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (*side.parameters(), *reader.parameters()):
            weight.add_(torch.randn(weight.shape, generator=g), alpha=0.2)
    n = 70
    raw, before, then, code, text, wanted = (
        torch.randn(n, width, generator=g)
        for width in (side.dim_in + 1, 12, 12, CODE_DIM, text_dim, settings.embed_dim)
    )
    raw[:, -1] = raw[:, -1].abs() * 30
    raw[::5] = 0  # without a message

    def through(vectors_of):
        side.zero_grad()
        reader.zero_grad()
        vectors = vectors_of(side, reader, raw, before, then, code, text)
        (vectors * wanted).sum().backward()
        read = (reader.item_state.weight, reader.item_state.bias, reader.item_text.weight)
        return [vectors.detach(), *(weight.grad for weight in (*side.parameters(), *read))]

    ours, theirs = through(item_vectors), through(plain)
    assert len(ours) == 14
    for mine, other in zip(ours, theirs, strict=True):
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(mine / scale, other / scale, atol=1e-5, rtol=0)
        assert not other.numel() or scale > 0
