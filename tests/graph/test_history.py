"""The compiled digest of a user's past against numpy."""

from dataclasses import fields

import numpy as np
import pytest

from driftline.graph.history import HistoryDigest, history_of, traits_of
from driftline.graph.view import UserView

DAY = 86_400_000


def view_of(random, items, times):
    n = int(random.integers(0, 60))

    def some(scale):
        return np.where(random.random(n) < 0.2, np.nan, scale * random.random(n)).astype(np.float32)

    return UserView(
        "user", random.integers(-1, items, n).astype(np.int32), np.sort(random.integers(0, times, n)) * DAY // 3,
        random.choice([1, 0.5, -1, 2], n).astype(np.float32), some(5), some(9), np.zeros(n, np.uint64),
        np.zeros(n, np.uint32), events=n,
    )  # fmt: skip


def digest_in_numpy(view, known):
    """The fields of a digest, item by item."""
    touched = (view.weight > 0) & (view.items >= 0) & (view.items < known)
    rows = np.flatnonzero(touched)
    item, t_ms = view.items[rows], view.t_ms[rows]
    group_ms = np.unique(t_ms)
    group = np.searchsorted(group_ms, t_ms)
    out: dict[str, list] = {field.name: [] for field in fields(HistoryDigest)}
    for one in list(dict.fromkeys(item[::-1].tolist())):
        at = np.flatnonzero(item == one)
        first, last = at[0], at[-1]
        out["items"].append(one)
        out["first_ms"].append(t_ms[first])
        out["last_ms"].append(t_ms[last])
        out["times"].append(len(np.unique(group[at])))
        out["weight"].append(view.weight[rows[at]].sum())
        out["last_group"].append(len(group_ms) - 1 - group[last])
        out["group_age"].append(len(group_ms) - group[first])
        out["previous_ms"].append(t_ms[at[-2]] if len(at) > 1 else t_ms[last])
        out["price"].append(view.price[rows[last]])
        out["value"].append(view.value[rows[last]])
        out["returned"].append(-view.weight[(view.items == one) & (view.weight < 0)].sum())
        out["row_start"].append(len(out["row_ms"]))
        out["row_ms"] += t_ms[at].tolist()
    out["basket"] = np.unique(item[group == len(group_ms) - 1]) if len(rows) else []
    out["group_ms"] = group_ms
    return out


@pytest.mark.parametrize("seed", range(40))
def test_a_digest_is_that_of_numpy(seed):
    random = np.random.default_rng(seed)
    view, known = view_of(random, 12, 60), 9 if seed % 2 else 12
    digest = history_of(view, known if seed % 2 else None)
    for name, expected in digest_in_numpy(view, known).items():
        np.testing.assert_allclose(getattr(digest, name), expected, rtol=1e-6, err_msg=name)
    assert digest.groups == len(digest.group_ms)
    assert digest.touches == len(digest.row_ms)


def test_traits_are_means_over_what_is_known():
    view = view_of(np.random.default_rng(1), 12, 60)
    past = history_of(view)
    price, value = past.price[np.isfinite(past.price)], past.value[np.isfinite(past.value)]
    now_ms = int(view.t_ms[-1]) + DAY
    span, since = now_ms - past.group_ms[0], DAY
    counts = np.log1p([past.groups, len(past.items), past.touches / past.groups])
    expected = [*counts, np.log1p(price).mean(), np.log1p(value).mean(), np.log1p(span / DAY), np.log1p(since / DAY)]
    np.testing.assert_allclose(traits_of(past, now_ms), expected, rtol=1e-5)
    np.testing.assert_array_equal(traits_of(history_of(view, 0), now_ms), [0, 0, *[np.nan] * 5])


def test_weights_of_a_past_keep_their_ratios_to_the_bit_however_long_ago_it_was():
    view = view_of(np.random.default_rng(3), 12, 60)
    digest, half = history_of(view), 14.0 * DAY
    assert len(digest.items) > 5
    for lives in (0, 1, 5, 40, 100):
        now = int(digest.last_ms.max() + lives * half)
        decayed, relative = digest.decayed(now, half), digest.relative(now, half)
        assert 0.5 < relative.max() <= 1
        np.testing.assert_array_equal(np.ldexp(relative, -lives), decayed)
    late = digest.relative(int(digest.last_ms.max() + 400 * half), half)  # all of it faded out of float32's range
    np.testing.assert_allclose(late, digest.relative(int(digest.last_ms.max()), half), rtol=1e-4)
    assert len(history_of(view, 0).relative(now, half)) == 0
