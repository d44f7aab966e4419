"""Vectors of many items for a training step, with their backward pass by hand.

    raw message, memory before it -> message function -> memory updater -> the memory's gradient
    the memory that the stream holds, code, text -> `GraphReader.items` -> vectors

A step reads the memories as the stream holds them and learns as if it had computed them. So their value needs no
message and no updater at all, and the backward pass takes the way through them once, over what it needs alone: nothing
is learnt of the data that the message is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from driftline.graph.embed import GraphReader
from driftline.graph.memory_net import SideNet

# N items, M memory_dim, R = dim_in + 1 of a raw message, T time_dim, G message_dim, D embed_dim, X text_dim


def item_vectors(
    side: SideNet,
    reader: GraphReader,
    raw_NR: Tensor,
    before_NM: Tensor,
    then_NM: Tensor,
    code_NC: Tensor,
    text_NX: Tensor,
) -> Tensor:
    """Vectors [N, D] of items.

    Args:
        side: message function and updater of the items.
        reader: reads memory, code and text.
        raw_NR: last raw messages, elapsed days in the last column; zeros = none: nothing is learnt by that memory.
        before_NM: memories before them; then_NM: memories as they are read.
        code_NC: codes; text_NX: text vectors.
    """
    first, second, cell = side.message_function[0], side.message_function[2], side.memory_updater
    weights = (
        side.time.w, side.time.b, first.weight, first.bias, second.weight, second.bias,
        cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh,
        reader.item_state.weight, reader.item_state.bias, reader.item_text.weight,
    )  # fmt: skip
    vectors: Tensor = _ItemPass.apply((raw_NR, before_NM, then_NM, code_NC, text_NX), *weights)  # type: ignore[no-untyped-call]
    return vectors


class _ItemPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: tuple[Tensor, ...], *weights: Tensor) -> Tensor:
        """[N, D]."""
        _, _, then_NM, code_NC, text_NX = data
        state_weight, state_bias, text_weight = weights[10:]
        state = torch.cat((then_NM, code_NC), 1)
        ctx.data, ctx.weights, ctx.state = data, weights, state
        vectors = torch.addmm(state_bias, state, state_weight.T)
        return vectors.addmm_(text_NX, text_weight.T) if text_NX.shape[1] else vectors

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        """Once, before a weight changes."""
        raw, before, _, _, text_NX = ctx.data
        w, b, first, first_bias, second, second_bias, of_input, input_bias, of_memory, memory_bias = ctx.weights[:10]
        M = before.shape[1]
        of_state = grad_ND.T @ ctx.state, grad_ND.sum(0), grad_ND.T @ text_NX
        days = raw[:, -1:]
        angle = (days * w).add_(b)
        x = torch.cat((raw[:, :-1], angle.cos()), 1)
        hidden = torch.addmm(first_bias, x, first.T).relu_()
        messages = torch.addmm(second_bias, hidden, second.T)
        of_messages = torch.addmm(input_bias, messages, of_input.T)  # reset, update, new
        of_before = torch.addmm(memory_bias, before, of_memory.T)
        gates = of_messages[:, : 2 * M].add_(of_before[:, : 2 * M]).sigmoid_()
        reset, update = gates[:, :M], gates[:, M:]
        fresh = torch.addcmul(of_messages[:, 2 * M :], reset, of_before[:, 2 * M :])
        fresh = fresh.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, in a third of the time
        seen = raw.abs().sum(1, keepdim=True) > 0
        grad = (grad_ND @ ctx.weights[10][:, :M]).mul_(seen)
        # from here on places of the activations take their gradients
        grad_update = (before - fresh).mul_(grad).mul_(update).mul_(1 - update)
        grad_fresh = grad.mul_(1 - update).mul_(1 - fresh.square_())
        grad_reset = (grad_fresh * of_before[:, 2 * M :]).mul_(reset).mul_(1 - reset)
        grad_input = torch.cat((grad_reset, grad_update, grad_fresh), 1)
        grad_memory = torch.cat((grad_reset, grad_update, grad_fresh.mul_(reset)), 1)
        grad_messages = grad_input @ of_input
        grad_hidden = (grad_messages @ second).mul_(hidden > 0)
        grad_angle = (grad_hidden @ first[:, -len(w) :]).mul_(angle.sin_()).neg_()
        return (
            None, (grad_angle * days).sum(0), grad_angle.sum(0), grad_hidden.T @ x, grad_hidden.sum(0),
            grad_messages.T @ hidden, grad_messages.sum(0), grad_input.T @ messages, grad_input.sum(0),
            grad_memory.T @ before, grad_memory.sum(0), *of_state,
        )  # fmt: skip
