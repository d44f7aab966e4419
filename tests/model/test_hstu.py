"""The backbones: parity with published code, causality, the time of the request."""

from pathlib import Path

import numpy as np
import pytest
import torch

from driftline.model.backbone import Dropout
from driftline.model.hstu import HSTU, time_buckets
from driftline.model.sasrec import SASRec

GOLDEN = Path(__file__).with_name("golden_backbones.npz")
"""Outputs of the HSTU authors' research code (float32, CPU) on random weights and inputs; see `docs/log.md`."""

DAY_MS = 86_400_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_window(rows=12, dim=16, batch=3, seed=1):
    g = generator(seed)
    x = torch.randn(batch, rows, dim, generator=g)
    t_ms = torch.randint(0, 90 * DAY_MS, (batch, rows + 1), generator=g).sort(dim=1).values + 1_260_000_000_000
    return x, t_ms


def backbones():
    hstu = HSTU(16, 2, 2, 20, generator())
    with torch.no_grad():
        for layer in hstu.layers:
            layer.bias.time.normal_(0, 0.5, generator=generator(5))
            layer.uvqk.normal_(0, 0.3, generator=generator(6))
    return [hstu, SASRec(16, 2, 2, 20, generator())]


def golden(name):
    with np.load(GOLDEN) as arrays:
        own = {
            k.removeprefix(f"{name}."): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(f"{name}.")
        }
    weights = {k.removeprefix("weights."): v for k, v in own.items() if k.startswith("weights.")}
    return own, weights


def largest_difference(backbone, own, weights):
    t_ms = torch.cat((own["t_s"], own["t_s"][:, -1:]), 1) * 1000
    lengths = own["lengths"]
    rows = int(lengths.max())
    for b, n in enumerate(lengths.tolist()):
        t_ms[b, n + 1 :] = t_ms[b, n]
    with torch.no_grad():
        y = backbone(weights["_embedding_module._item_emb.weight"][own["ids"][:, :rows]], t_ms[:, : rows + 1])
    return max(float((y[b, :n] - own["y"][b, :n]).abs().max()) for b, n in enumerate(lengths.tolist()))


@pytest.mark.parametrize(("name", "heads"), [("hstu1", 1), ("hstu2", 2)])
def test_hstu_equals_the_published_research_code_within_1e_5(name, heads):
    own, weights = golden(name)
    hstu = HSTU(16, 2, heads, 20, generator(), outputs=1)
    state = {"position": weights["_input_features_preproc._pos_emb.weight"]}
    for i in range(2):
        theirs, ours = f"_hstu._attention_layers.{i}", f"layers.{i}"
        state[f"{ours}.uvqk"] = weights[f"{theirs}._uvqk"]
        state[f"{ours}.out.weight"] = weights[f"{theirs}._o.weight"]
        state[f"{ours}.out.bias"] = weights[f"{theirs}._o.bias"]
        state[f"{ours}.bias.time"] = weights[f"{theirs}._rel_attn_bias._ts_w"]
        # their weight n - 1 + (j - i) belongs to key j of query i; ours is indexed by i - j
        state[f"{ours}.bias.position"] = weights[f"{theirs}._rel_attn_bias._pos_w"][: hstu.n].flip(0)
    hstu.load_state_dict(state)
    assert largest_difference(hstu, own, weights) <= 1e-5


def test_sasrec_equals_the_published_research_code_within_1e_5():
    own, weights = golden("sasrec1")
    sasrec = SASRec(16, 2, 1, 22, generator())
    state = {"position": weights["_input_features_preproc._pos_emb.weight"]}
    for i in range(2):
        for j, part in enumerate(("q", "k", "v")):
            rows = slice(16 * j, 16 * (j + 1))
            state[f"layers.{i}.{part}.weight"] = weights[f"attention_layers.{i}.in_proj_weight"][rows]
            state[f"layers.{i}.{part}.bias"] = weights[f"attention_layers.{i}.in_proj_bias"][rows]
        state[f"layers.{i}.out.weight"] = weights[f"attention_layers.{i}.out_proj.weight"]
        state[f"layers.{i}.out.bias"] = weights[f"attention_layers.{i}.out_proj.bias"]
        for theirs, ours in ((0, "inner"), (3, "outer")):
            state[f"layers.{i}.{ours}.weight"] = weights[f"forward_layers.{i}._conv1d.{theirs}.weight"][..., 0]
            state[f"layers.{i}.{ours}.bias"] = weights[f"forward_layers.{i}._conv1d.{theirs}.bias"]
    sasrec.load_state_dict(state)
    assert largest_difference(sasrec, own, weights) <= 1e-5


@pytest.mark.parametrize("backbone", backbones(), ids=["hstu", "sasrec"])
def test_changing_later_events_never_changes_earlier_rows(backbone):
    x, t_ms = random_window()
    with torch.no_grad():
        before = backbone(x, t_ms)
        x[:, 7:] = 9.0
        t_ms[:, 8:] += DAY_MS  # entry 7 is the request time of row 6
        after = backbone(x, t_ms)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("backbone", backbones(), ids=["hstu", "sasrec"])
def test_padding_on_the_right_does_not_change_a_window(backbone):
    x, t_ms = random_window()
    with torch.no_grad():
        alone = backbone(x[:, :5], t_ms[:, :6])
        padded = backbone(x, torch.cat((t_ms[:, :6], t_ms[:, 5:6].expand(-1, 7)), 1))
    torch.testing.assert_close(padded[:, :5], alone, atol=1e-6, rtol=0)


def test_the_last_row_uses_the_request_time_and_the_others_do_not():
    hstu = backbones()[0]
    x, t_ms = random_window()
    later = t_ms.clone()
    later[:, -1] += 40 * DAY_MS
    with torch.no_grad():
        before, after = hstu(x, t_ms), hstu(x, later)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert float((before[:, -1] - after[:, -1]).abs().max()) > 1e-4


def test_time_buckets_follow_the_papers_formula_at_every_scale():
    gaps_s = [0, 0.4, 1, 1.3, 2, 60, 3600, 86400, 31_536_000, 3_153_600_000]
    t_ms = torch.tensor([[1_700_000_000_000, 1_700_000_000_000 + int(1000 * gap)] for gap in gaps_s])
    expected = [int(np.log(max(1.0, gap)) / 0.301) for gap in gaps_s]
    assert time_buckets(t_ms).flatten().tolist() == expected


def test_one_millisecond_around_a_bucket_edge_is_told_apart_on_a_unix_clock():
    edge_ms = int(np.ceil(1000 * np.exp(0.301 * 20)))
    t_ms = torch.tensor([[1_700_000_000_000, 1_700_000_000_000 + edge_ms + d] for d in (-1, 0)])
    assert time_buckets(t_ms).flatten().tolist() == [19, 20]


def test_dropout_masks_come_from_the_generator_alone():
    x, t_ms = random_window()
    hstu = backbones()[0]
    with torch.no_grad():
        first = hstu(x, t_ms, Dropout(0.2, generator(3)))
        torch.manual_seed(99)
        second = hstu(x, t_ms, Dropout(0.2, generator(3)))
    assert torch.equal(first, second)
