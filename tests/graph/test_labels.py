import numpy as np
import pytest

from driftline.graph.labels import LISTED, MOST, Labels
from driftline.graph.labels_kernel import COLUMNS

DAY = 86_400_000.0
T0 = 1_600_000_000_000


def made():
    labels = Labels((DAY, 10 * DAY))
    labels.set(0, "Acme", ["lamps", "gifts"])
    labels.set(1, "acme ", ["Lamps"])
    labels.set(2, "Zest", ["mugs", "gifts"])
    labels.set(3, "", ["gifts"])
    labels.ensure(6)
    return labels


def taste(labels, items, weight=None):
    items = np.array(items, np.int32)
    return labels.taste(items, np.ones(len(items), np.float32) if weight is None else np.array(weight, np.float32), 1)


def cosine(labels, of, items):
    return labels.cosines(of, np.array(items, np.int32))


def columns(labels, history, candidates):
    out = np.zeros((len(COLUMNS), len(candidates)), np.float32)
    labels.columns(taste(labels, history), np.array(candidates, np.int32), out)
    return dict(zip(COLUMNS, out, strict=True))


def take(labels, items, days):
    labels.add(np.array(items, np.int32), T0 + round(days * DAY))


def test_a_brand_is_one_whatever_its_case_and_no_category_of_the_same_name():
    labels = made()
    assert labels.of[0, 0] == labels.of[1, 0] != labels.of[2, 0]
    assert labels.of[3, 0] == -1
    assert labels.of[0, 1] == labels.of[1, 1]
    labels.set(4, "Cafe\u0301", [])
    labels.set(5, " CAF\u00c9", [])
    assert labels.of[4, 0] == labels.of[5, 0] > labels.of[2, 0]
    labels.set(4, "lamps", ["acme"])
    assert labels.of[4, 0] not in labels.of[:4]
    assert labels.of[4, 1] not in labels.of[:4]


def test_cosines_are_those_of_vectors_weighed_by_rarity():
    labels = made()
    n = len(labels)
    dense = np.zeros((6, n))
    for item in range(6):
        for label in labels.of[item][labels.of[item] >= 0]:
            dense[item, label] = np.log(6 / sum(label in row for row in labels.of))
    history = 2.0 * dense[0] + 1.0 * dense[3]
    norms = np.linalg.norm(dense, axis=1) * np.linalg.norm(history)
    wanted = np.divide(dense @ history, norms, out=np.zeros(6), where=norms > 0)
    found = cosine(labels, taste(labels, [0, 3], [2, 1]), range(6))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[4] == 0


def test_items_without_labels_and_histories_without_any_say_nothing():
    labels = made()
    assert not cosine(labels, taste(labels, []), range(6)).any()
    assert not cosine(labels, taste(labels, [4, 5, 99]), [0, 1]).any()
    said = columns(labels, [0], [4, 99])
    assert not any(values.any() for values in said.values())
    fresh = Labels((DAY, 10 * DAY))
    assert not any(values.any() for values in columns(fresh, [], [0]).values())


def test_a_brand_that_the_user_keeps_to_and_what_is_taken_more_of_late_show():
    labels = made()
    take(labels, [2], 0)
    take(labels, [2], 1)
    take(labels, [1], 20)
    said = columns(labels, [0, 3], [1, 2, 3])
    assert said["brand_items"].tolist() == pytest.approx([np.log(2), 0, 0])
    assert said["brand_last"].tolist() == [1, 0, 0]
    assert said["branded"].tolist() == [1, 1, 0]
    assert said["brand_share"][0] > said["brand_share"][1]
    assert said["trend"][0] > 0 > said["trend"][1]
    assert said["categories"].tolist() == pytest.approx(np.log1p([1, 2, 1]).tolist())


def test_the_list_of_a_label_has_what_was_taken_last_first_and_each_item_once():
    labels = made()
    gifts = labels.of[3, 1]
    assert labels.recent[gifts].tolist() == [3, 2, 0] + [-1] * (LISTED - 3)
    take(labels, [0], 0)
    take(labels, [0, 2], 1)
    assert labels.recent[gifts][:4].tolist() == [2, 0, 3, -1]
    for item in range(10, 10 + LISTED):
        labels.set(item, "", ["gifts"])
    assert labels.recent[gifts].tolist() == list(range(9 + LISTED, 9, -1))


def test_labels_that_change_are_counted_anew_and_said_twice_change_nothing():
    labels = made()
    lamps = labels.of[0, 1]
    before = {name: array.copy() for name, array in labels.state().items()}
    labels.set(0, "Acme", ["lamps", "gifts", " ", "LAMPS"])
    assert all(np.array_equal(array, before[name]) for name, array in labels.state().items())
    labels.set(0, "", [])
    assert labels.logs[lamps] == 0
    assert (labels.of[0] == -1).all()
    assert not columns(labels, [1], [0])["cosine"].any()


def test_an_item_leaves_the_list_of_a_label_that_it_lost_and_keeps_its_place_in_others():
    labels = made()
    gifts, mugs = labels.of[2, 2], labels.of[2, 1]
    labels.set(2, "Zest", ["gifts", "new"])
    assert labels.recent[mugs, 0] == -1
    assert labels.recent[gifts, :4].tolist() == [3, 2, 0, -1]
    assert labels.recent[labels.of[2, 2], :2].tolist() == [2, -1]
    labels.set(2, "", [])
    assert labels.recent[gifts, :3].tolist() == [3, 0, -1]
    labels.set(0, "", [f"gifts{n}" for n in range(3)])
    assert labels.of[0, :5].tolist() == [-1, *range(len(labels) - 3, len(labels)), -1]


def test_rows_that_change_with_labels_and_takes_are_marked():
    labels = made()
    labels.set(5, "Quiet", ["still"])
    take(labels, [0], 0)
    held = {name: array.copy() for name, array in labels.arrays().items()}
    for name, marks in labels.touched().items():
        marks.take(len(held[name]))
    labels.set(2, "Zest", ["gifts", "new"])
    labels.set(8, "Acme", [])
    take(labels, [1, 2], 1)
    now = labels.arrays()
    for name, marks in labels.touched().items():
        rows, kept = marks.take(len(now[name])), np.zeros_like(now[name])
        assert 0 < len(rows) < len(kept)
        kept[: len(held[name])] = held[name]
        kept[rows] = now[name][rows]
        assert np.array_equal(kept, now[name]), name


def test_items_are_alike_by_a_label_that_all_have_however_many_there_are():
    labels = Labels((DAY, 10 * DAY))
    for n in range(300):
        labels.set(n, "", ["books"])
        assert cosine(labels, taste(labels, [0]), [0, n]).tolist() == pytest.approx([1, 1])
    labels.set(1, "Acme", ["books"])
    alike = cosine(labels, taste(labels, [0]), [1, 2])
    assert 0 < alike[0] < 0.01
    assert alike[1] == pytest.approx(1)


def test_labels_beyond_those_that_there_is_room_for_are_passed_over(monkeypatch):
    labels = made()
    monkeypatch.setattr("driftline.graph.labels.MANY", len(labels) + 1)
    labels.set(5, "Other", ["x", "gifts", "y"])
    assert (labels.of[5] >= 0).sum() == 2
    assert labels.of[5, 1] == labels.of[3, 1]
    labels.set(4, "Another", ["lamps"])
    assert labels.of[4, :3].tolist() == [-1, labels.of[0, 1], -1]


def test_what_answers_are_made_of_answers_alike_and_labels_of_others_do_not_show():
    labels, other, small = made(), Labels((DAY, 10 * DAY)), Labels((DAY, 10 * DAY))
    take(labels, [0, 2], 0)
    for array in (held := labels.arrays()).values():
        array.flags.writeable = False
    other.restore(held)
    small.set(0, "Acme", ["lamps"])
    said = columns(labels, [0, 2], range(7))
    columns(small, [0], [0])
    again = columns(other, [0, 2], range(7))
    assert all(said[name].tolist() == again[name].tolist() for name in COLUMNS)


def test_more_categories_than_there_is_room_for_are_left_out():
    labels = made()
    labels.set(5, "Acme", [f"c{n}" for n in range(100)])
    assert (labels.of[5] >= 0).sum() == MOST


def test_what_was_restored_goes_on_to_the_bit():
    first, second = made(), Labels((DAY, 10 * DAY))
    take(first, [0, 2], 0)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for labels in (first, second):
        labels.set(7, "Zest", ["mugs", "new"])
        take(labels, [2, 7], 3)
    mine, theirs = first.state(), second.state()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert columns(first, [2], [0, 7])["trend"].tolist() == columns(second, [2], [0, 7])["trend"].tolist()
