"""Training by hand-written passes equals autograd on padded windows: attention, softmax, item rows, a whole step."""

import copy

import numpy as np
import pytest
import torch
from tests.model.plain_windows import PlainLog, build
from tests.model.test_hstu_learner import stream

from driftline.configs.settings import Model
from driftline.model.average import Average
from driftline.model.backbone import Dropout, unit
from driftline.model.batch import build_batch, pad
from driftline.model.hstu import HSTU, bucket_edges_ms, time_buckets
from driftline.model.items import BETAS, EPSILON, ItemVectors
from driftline.model.loss import (
    Prior,
    SoftmaxStep,
    distinct,
    draw_candidates,
    sampled_softmax,
    softmax_loss,
)
from driftline.model.packed import Packing
from driftline.model.rehearsal import RehearsalLog
from driftline.model.sequence import SequenceLearner

START_MS, DAY_MS = 1_260_000_000_000, 86_400_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def large(hstu, seed=7):
    """Weights drawn large, so that no term is lost in rounding."""
    g = generator(seed)
    with torch.no_grad():
        for layer in hstu.layers:
            layer.uvqk.normal_(0, 0.3, generator=g)
            layer.bias.time.normal_(0, 0.5, generator=g)
            layer.bias.position.normal_(0, 0.5, generator=g)
            layer.out.bias.normal_(0, 0.5, generator=g)
        if hstu.gap is not None:
            hstu.gap.normal_(0, 0.5, generator=g)
    return hstu


def close(ours, theirs, tolerance=1e-5):
    """Equal up to a share of the largest entry."""
    scale = float(theirs.abs().max().clamp(min=1e-3))
    torch.testing.assert_close(ours / scale, theirs / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dim", "heads", "blocks", "gaps"), [(16, 1, 1, False), (16, 2, 2, False), (12, 3, 2, True)])
def test_windows_end_to_end_give_the_vectors_and_gradients_of_padded_windows(dim, heads, blocks, gaps):
    hstu, lengths = large(HSTU(dim, blocks, heads, 40, generator(), gaps=gaps)), [1, 2, 7, 7, 33, 40]
    random = np.random.default_rng(0)
    times = [START_MS + np.sort(random.integers(0, 60 * DAY_MS, n + 1)) for n in lengths]
    times[2][3:6] = times[2][3]  # one basket
    x, wanted = (
        torch.randn(sum(lengths), dim, generator=generator(1)),
        torch.randn(sum(lengths), dim, generator=generator(2)),
    )

    def through(encode):
        leaf = x.clone().requires_grad_()
        hstu.zero_grad()
        y = encode(leaf)
        (y * wanted).sum().backward()
        return [y.detach(), leaf.grad, *(p.grad.clone() for p in hstu.parameters())]

    def padded(leaf):
        rows = torch.nn.utils.rnn.pad_sequence(leaf.split(lengths), batch_first=True)
        _, t_ms = pad([np.zeros(n, np.int64) for n in lengths], times)
        y = hstu(rows, t_ms)
        return torch.cat([y[b, :n] for b, n in enumerate(lengths)])

    packing = Packing.of(times, bucket_edges_ms().numpy())
    for ours, theirs in zip(through(lambda leaf: hstu.packed(leaf, packing)), through(padded), strict=True):
        close(ours, theirs)
    asked = [random.permutation(n)[: n // 2 + n % 3] for n in lengths]  # of the first window all, of others some
    rows = torch.from_numpy(np.concatenate([one + start for one, start in zip(asked, packing.starts, strict=False)]))
    wanted = wanted[rows]
    some = through(lambda leaf: hstu.packed(leaf, packing, asked=asked)), through(lambda leaf: padded(leaf)[rows])
    for ours, theirs in zip(*some, strict=True):
        close(ours, theirs)


def test_dropout_by_hand_drops_what_autograd_drops_and_a_row_alike_whoever_else_asks():
    dim, lengths = 16, [5, 12, 9]
    hstu = large(HSTU(dim, 2, 2, 20, generator()))
    random = np.random.default_rng(0)
    times = [START_MS + np.sort(random.integers(0, 60 * DAY_MS, n + 1)) for n in lengths]
    packing = Packing.of(times, bucket_edges_ms().numpy())
    x, wanted = torch.randn(2, sum(lengths), dim, generator=generator(1))

    def plain(leaf, dropout):
        y = dropout(leaf * dim**0.5 + hstu.position[torch.from_numpy(packing.places)])
        for layer in hstu.layers:
            h = torch.nn.functional.layer_norm(y, (dim,), eps=1e-6)
            u, v, q, k = torch.split(torch.nn.functional.silu(h @ layer.uvqk), dim, dim=1)
            mixed = []
            for start, n, t_ms in zip(packing.starts, lengths, times, strict=False):
                one = slice(start, start + n)
                heads = [z[one].view(n, 2, dim // 2).transpose(0, 1) for z in (q, k, v)]
                scores = heads[0] @ heads[1].transpose(1, 2) + layer.bias(time_buckets(torch.from_numpy(t_ms)[None]))
                weights = torch.nn.functional.silu(scores).tril() / layer.n
                mixed.append((weights @ heads[2]).transpose(0, 1).reshape(n, dim))
            y = y + layer.out(dropout(u * torch.nn.functional.layer_norm(torch.cat(mixed), (dim,), eps=1e-6)))
        return unit(y)

    def through(encode, rows):
        leaf, dropout = x.clone().requires_grad_(), Dropout(0.4, generator(5))
        hstu.zero_grad()
        y = encode(leaf, dropout)
        (y * wanted[rows]).sum().backward()
        gradients = [leaf.grad, *(p.grad.clone() for p in hstu.parameters())]
        return [y.detach(), *gradients, dropout.generator.get_state().float()]

    asked = [np.array([4, 0]), np.array([11]), np.array([3, 8, 1])]
    rows = torch.from_numpy(np.concatenate([one + start for one, start in zip(asked, packing.starts, strict=False)]))
    everybody = torch.arange(len(x))
    for places, those in ((None, everybody), (asked, rows)):
        ours = through(lambda leaf, dropout, p=places: hstu.packed(leaf, packing, dropout, p), those)
        theirs = through(lambda leaf, dropout, t=those: plain(leaf, dropout)[t], those)
        for mine, other in zip(ours, theirs, strict=True):
            close(mine, other)


def test_buckets_that_are_found_from_their_neighbours_are_those_of_the_formula_in_any_order_of_times():
    random = np.random.default_rng(0)
    for spread in (1, 1000, 90 * DAY_MS, 4000 * DAY_MS):
        t_ms = START_MS + random.integers(0, spread, 51)
        packing = Packing.of([t_ms, t_ms[:8]], bucket_edges_ms().numpy())
        expected = time_buckets(torch.from_numpy(t_ms)[None])[0].numpy()
        earlier = np.tril_indices(50)
        assert np.array_equal(packing.buckets[:2500].reshape(50, 50)[earlier], expected[earlier])
        assert np.array_equal(
            packing.buckets[2500:].reshape(7, 7)[np.tril_indices(7)], expected[:7, :7][np.tril_indices(7)]
        )


@pytest.mark.parametrize("temperature", [0.05, 0.004])
@pytest.mark.parametrize("prior", [0.0, 0.7, 9.0])
@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("drawn", [0, 40])
def test_the_loss_and_its_gradients_are_those_of_autograd(drawn, log_q, prior, temperature):
    g, rows, items = generator(3), 300, 120
    y, row_T = unit(torch.randn(rows, 16, generator=g)), torch.randint(0, rows, (700,), generator=g)
    targets = torch.randint(0, items, (700,), generator=g)
    kept = np.sort(np.unique((row_T.sort().values * items + targets).numpy(), return_index=True)[1])
    row_T, targets = row_T.sort().values[kept], targets[kept]
    candidates = draw_candidates(targets, torch.arange(items), drawn, g)
    c, weight_T = unit(torch.randn(len(candidates.rows_C), 16, generator=g)), torch.rand(len(row_T), generator=g)
    column_T, coefficient = torch.searchsorted(candidates.rows_C, targets), torch.nn.Parameter(torch.tensor([prior]))
    shares = -12 * torch.rand(5, len(c), generator=g)
    added = Prior(shares, torch.randint(0, 5, (rows,), generator=g), coefficient) if prior else None

    def through(loss_of):
        leaves = [y.clone().requires_grad_(), c.clone().requires_grad_()]
        coefficient.grad = None
        loss = loss_of(*leaves)
        (3 * loss).backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves), *([coefficient.grad] if prior else [])]

    def plain(y_RD, c_CD):
        logits = y_RD @ c_CD.T / temperature
        if added:
            logits = logits + (shares * coefficient).index_select(0, added.place_R)
        return sampled_softmax(logits, candidates, row_T, column_T, weight_T, log_q)

    step = SoftmaxStep(candidates, row_T, column_T, weight_T, temperature, log_q, added)
    for ours, theirs in zip(through(lambda a, b: softmax_loss(a, b, step)), through(plain), strict=True):
        # of logits up to 250 the sums of the coefficient's gradient cancel
        close(ours, theirs, 3e-5 if len(ours.shape) != 1 or temperature > 0.01 else 1e-3)


@pytest.mark.parametrize("drawn", [0, 3])
def test_a_target_that_a_basket_holds_twice_counts_once_in_the_sum(drawn):
    g = generator(0)
    candidates = draw_candidates(torch.tensor([0, 0, 1]), torch.arange(2, 8) if drawn else torch.arange(8), drawn, g)
    c, y = unit(torch.randn(len(candidates.rows_C), 4, generator=g)), unit(torch.randn(2, 4, generator=g))
    row_T, column_T, weight_T = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5, 1.0])
    step = SoftmaxStep(candidates, row_T, column_T, weight_T, 0.5, False, None)
    leaf = y.double().clone().requires_grad_()
    logits = leaf @ c.double().T / 0.5
    seen = candidates.negative_C[None].repeat(2, 1)
    seen[row_T, column_T] = True
    nll = logits.masked_fill(~seen, -torch.inf).logsumexp(1)[row_T] - logits[row_T, column_T]
    (nll * weight_T).sum().div(2).backward()
    ours = y.clone().requires_grad_()
    loss = softmax_loss(ours, c, step)
    loss.backward()
    close(loss.detach().double(), (nll * weight_T).sum().detach() / 2)
    close(ours.grad.double(), leaf.grad)


def test_adam_and_means_by_rows_are_those_of_whole_tensors():
    items, average = ItemVectors(6, 0, generator()), Average(0.9, HSTU(6, 1, 1, 4, generator()))
    items.grow(20)
    ids, means = items.vectors().clone(), torch.zeros(20, 6)
    mean, square, steps, counts = torch.zeros(20, 6), torch.zeros(20, 6), torch.zeros(20), torch.zeros(20)
    for number in range(30):
        rows = torch.randperm(20, generator=generator(number))[: 3 + number % 9].sort().values
        grad = torch.randn(len(rows), 6, generator=generator(100 + number))
        items.step(rows, grad, 0.01)
        steps[rows] += 1
        mean[rows] = BETAS[0] * mean[rows] + (1 - BETAS[0]) * grad
        square[rows] = BETAS[1] * square[rows] + (1 - BETAS[1]) * grad**2
        corrected = mean[rows] / (1 - BETAS[0] ** steps[rows])[:, None]
        ids[rows] -= 0.01 * corrected / ((square[rows] / (1 - BETAS[1] ** steps[rows])[:, None]).sqrt() + EPSILON)
        close(items.vectors(), ids)
        average.update(average.backbone, rows, ids[rows])
        stay = (counts[rows] / (10 + counts[rows])).clamp(max=0.9)[:, None]
        means[rows] = stay * means[rows] + (1 - stay) * ids[rows]
        counts[rows] += 1
        known, held = (torch.from_numpy(z)[:20] for z in average.arrays(6))
        close(held, means[: len(held)])
        assert torch.equal(known, counts[: len(held)])


class Padded(SequenceLearner):
    """The oracle: a step on padded windows by autograd alone."""

    def train(self, windows):
        batch = build_batch(windows, self.settings, self._random)
        candidates = draw_candidates(batch.target_T, self.seen, self._negatives(), self._generator)
        rows_U = distinct(candidates.rows_C, *map(torch.from_numpy, batch.items))  # padding is no use of item 0
        leaf_UD = self.items.leaf(rows_U)
        x_UD = self.items.compose(leaf_UD, rows_U)
        y_CD = unit(x_UD.index_select(0, torch.searchsorted(rows_U, candidates.rows_C)))
        outputs = []
        for chunk in batch.chunks():
            x = x_UD[torch.searchsorted(rows_U, chunk.items_BL)]
            outputs.append(self.backbone(x, chunk.t_ms_BM, None).flatten(0, 1)[chunk.asked])
        logits = torch.cat(outputs) @ y_CD.T / self.settings.temperature
        if self.prior.on:
            prior = self.prior.at(batch.asked_ms_R, candidates.rows_C)
            logits = logits + (prior.shares_SC * prior.coefficient)[prior.place_R]
        column_T = torch.searchsorted(candidates.rows_C, batch.target_T)
        loss = sampled_softmax(logits, candidates, batch.row_T, column_T, batch.weight_T, self.settings.log_q)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.items.step(rows_U, leaf_UD.grad, self.settings.learning_rate)
        self.average.update(self.backbone, rows_U, x_UD)
        self.steps += 1
        self._cache.step(rows_U, self.steps)
        self._histories.clear()
        return float(loss.detach())


@pytest.mark.parametrize("full_softmax", [4, 8192])
def test_what_is_learnt_over_a_stream_is_what_padded_windows_and_autograd_learn(full_softmax):
    settings = Model(
        dim=16, heads=2, max_len=12, batch=6, step_groups=2, dropout=0.0, full_softmax=full_softmax, negatives=7,
        inside_share=0.3,
    )  # fmt: skip
    ours, oracle, followed = (make(settings, text_dim=8) for make in (SequenceLearner, Padded, Padded))
    text = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    for learner in (ours, oracle):
        for row in range(0, 30, 2):
            learner.set_text(row, text[row])
    for one in stream(40):
        followed.load_state_dict(copy.deepcopy(ours.state_dict()))
        for learner in (ours, oracle, followed):
            learner.learn(one)
        if ours.steps:  # from equal weights: one step at a time
            for mine, theirs in zip(gradients(ours), gradients(followed), strict=True):
                scale = float(theirs.abs().max().clamp(min=0.03))  # the coefficient's sums cancel at the beginning
                torch.testing.assert_close(mine / scale, theirs / scale, atol=3e-5, rtol=0)
    assert ours.steps == oracle.steps == followed.steps > 15
    for name, weight in ours.backbone.state_dict().items():
        close(weight, oracle.backbone.state_dict()[name], 0.02)  # Adam divides by roots: rounding grows step by step
    np.testing.assert_allclose(ours.item_matrix(), oracle.item_matrix(), atol=2e-3)
    # the coefficient's first gradient is 0 but for rounding, of which Adam makes a whole step
    assert abs(float((ours.prior.coefficient - oracle.prior.coefficient).detach())) < 2.1 * settings.learning_rate


def gradients(learner):
    """Of the last step: backbone, projection, coefficient, and the item table's first moments."""
    leaves = [*learner.backbone.parameters(), learner.items.project, learner.prior.coefficient]
    return [*(leaf.grad for leaf in leaves), learner.items.state_dict()["mean"]]


FIELDS = ("items", "t_ms", "ends", "rows", "targets", "counts", "repeated")


def test_windows_and_batches_are_those_that_are_built_group_by_group():
    random, settings = np.random.default_rng(0), Model(inside_share=0.3, repeat_weight=0.4)
    log, plain, met = RehearsalLog(60, 9), PlainLog(60, 9), 0
    for number in range(400):
        items = random.integers(0, 12 + number // 10, random.integers(1, 14 if number % 20 == 0 else 6))
        user, wanted = f"u{random.integers(4)}", random.random(len(items)) < 0.7
        t_ms = int(random.integers(number, number + 9))
        for one in (log, plain):
            one.add(user, items.astype(np.int32), wanted, t_ms)
        if number % 90 == 89:
            log.forget("u1")
            plain.forget("u1")
        if number % 50 == 49:
            other = RehearsalLog(60, 9)
            other.load_state_dict(log.state_dict())
            log = other
        for user in ("u0", "u1"):
            mine = [n for n in range(log.start, number + 1) if plain.groups[n][0] == user]
            kept = [item for n in (plain.chain(mine[-1]) if mine else []) for item in plain.groups[n][1]]
            assert log.history(user)[0].tolist() == kept[-9:]
        asked = [n for n in range(log.start, number + 1) if log.has_past(n)]
        found = log.windows(asked)
        for n, window in zip(asked, found, strict=True):
            expected = plain.window(n)
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(window, name), getattr(expected, name), err_msg=f"{n} {name}")
        some = [window for window in found if len(window.targets)][:8]
        if some and number % 7 == 0:
            batch = build_batch(some, settings, np.random.default_rng(number))
            items, places, *flat = build(some, settings, np.random.default_rng(number))
            for mine, theirs in ((batch.items, items), (batch.asked, places)):
                assert [z.tolist() for z in mine] == [z.tolist() for z in theirs]
            counts = np.bincount(batch.row_T.numpy(), minlength=len(batch.asked_ms_R))
            ours = (batch.asked_ms_R, counts, batch.target_T.numpy(), batch.weight_T.numpy())
            for mine, theirs in zip(ours, flat, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            met += 1
    assert met > 40


def test_dropout_leaves_out_the_share_it_says_and_keeps_the_mean():
    x = torch.ones(400, 100)
    kept = Dropout(0.2, generator())(x)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert abs(float(kept.mean()) - 1) < 0.01
