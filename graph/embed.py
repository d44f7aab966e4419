"""Reading the graph: a user's query vector and the items' vectors, for retrieval and as a feature of the ranker.

    query = attention over the last-K temporal neighbours + MLP(memory, elapsed, that attention)
    fused = query + attention of the query over the profile's facets
    item  = W (memory, code, text)

The score of a link is their dot product. Nothing here changes a memory. A profile joins at this
point and not before: the recurrent memory and the state's hash never hold what an LLM wrote.

Source: TGN (arXiv 2006.10637, section 3.1, temporal graph attention); DynLLM (arXiv 2405.07580, section 3: facets
are attended to by the dynamic state). Departure: one attention head, no second hop.

Dimension keys: B users, K neighbours, N items, M memory_dim, D embed_dim, F facets, X text_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from driftline.configs.settings import Graph
from driftline.graph.memory import CODE_DIM, EDGE_DIM
from driftline.graph.memory_net import TimeEncoder

MASKED = -1e9


class OfText(nn.Linear):
    """A projection of text vectors; of those of width 0 one to zeros."""

    def reset_parameters(self) -> None:
        """As nn.Linear, which warns where there is nothing to draw."""
        if self.in_features:
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)


class GraphReader(nn.Module):
    """Temporal attention for users, one projection for items.

    Args:
        settings: dimensions.
        text_dim: X, width of the frozen text vectors; 0 = there are none.
    """

    def __init__(self, settings: Graph, text_dim: int) -> None:
        super().__init__()
        memory, embed, time = settings.memory_dim, settings.embed_dim, settings.time_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 1)
            self.time = TimeEncoder(settings)
            self.item_state = nn.Linear(memory + CODE_DIM, embed)
            self.item_text = OfText(text_dim, embed, bias=False)
            self.query = nn.Linear(memory + time, embed)
            self.key = nn.Linear(embed + time + EDGE_DIM, embed)
            self.value = nn.Linear(embed + time + EDGE_DIM, embed)
            self.out = nn.Sequential(nn.Linear(memory + time + embed, embed), nn.ReLU(), nn.Linear(embed, embed))
            self.facet_key = OfText(text_dim, embed)
            self.facet_value = OfText(text_dim, embed)

    def items(self, memory_NM: Tensor, code_NC: Tensor, text_NX: Tensor) -> Tensor:
        """Item vectors [N, D]."""
        state_ND = self.item_state(torch.cat((memory_NM, code_NC), 1))
        return state_ND + self.item_text(text_NX)  # type: ignore[no-any-return]

    def users(
        self,
        memory_BM: Tensor,
        idle_days_B: Tensor,
        items_BKD: Tensor,
        age_days_BK: Tensor,
        edges_BKE: Tensor,
        mask_BK: Tensor,
    ) -> Tensor:
        """Query vectors [B, D].

        Args:
            memory_BM: node memories.
            idle_days_B: days since the memory's last update, 0 for a new user.
            items_BKD: vectors of the last-K neighbours.
            age_days_BK: days since each of them.
            edges_BKE: their edge features.
            mask_BK: True where there is a neighbour.
        """
        state = torch.cat((memory_BM, self.time(idle_days_B[:, None])), 1)
        around = torch.cat((items_BKD, self.time(age_days_BK[:, :, None]), edges_BKE), 2)
        attended_BD = self._attend(self.query(state), self.key(around), items_BKD + self.value(around), mask_BK)
        return attended_BD + self.out(torch.cat((state, attended_BD), 1))  # type: ignore[no-any-return]

    def fuse(self, query_BD: Tensor, facets_BFX: Tensor) -> Tensor:
        """Query vectors [B, D] joined with profile facets; rows of zeros are facets that are not there."""
        mask_BF = facets_BFX.abs().sum(2) > 0
        joined = self._attend(query_BD, self.facet_key(facets_BFX), self.facet_value(facets_BFX), mask_BF)
        return query_BD + joined

    @staticmethod
    def _attend(query_BD: Tensor, key_BKD: Tensor, value_BKD: Tensor, mask_BK: Tensor) -> Tensor:
        logits_BK = (key_BKD @ query_BD[:, :, None]).squeeze(2) / math.sqrt(query_BD.shape[1])
        weights_BK = functional.softmax(logits_BK.masked_fill(~mask_BK, MASKED), dim=1) * mask_BK
        return (weights_BK[:, None, :] @ value_BKD).squeeze(1)
