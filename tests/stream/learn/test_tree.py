"""Trees of plain values: what comes back is what went in, to the bit, and nothing else can go in or come out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftline.stream.learn.tree import DTYPES, read_tree, write_tree


def there_and_back(tree: Any) -> Any:
    file = io.BytesIO()
    write_tree(file, tree)
    file.seek(0)
    found = read_tree(file)
    assert file.read() == b""
    return found


keys = st.one_of(st.text(), st.binary(), st.integers())
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())
trees = st.recursive(
    leaves, lambda below: st.one_of(st.lists(below), st.lists(below).map(tuple), st.dictionaries(keys, below))
)


@given(trees)
def test_plain_values_come_back_with_their_types_and_in_their_order(tree: Any) -> None:
    assert repr(there_and_back(tree)) == repr(tree)  # unlike ==, repr tells 1 from True and -0.0 from 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3), (1, 2, 3)])
def test_arrays_and_tensors_come_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    words = np.random.default_rng(0).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    array = (words > 127).reshape(shape) if dtype == "bool" else words.view(dtype).reshape(shape)
    tensor = torch.from_numpy(array.copy())
    found_array, found_tensor = there_and_back([array, tensor])
    assert (found_array.dtype, found_array.shape, found_array.tobytes()) == (array.dtype, shape, array.tobytes())
    assert found_array.flags.writeable
    assert found_tensor.dtype == tensor.dtype
    assert found_tensor.numpy().tobytes() == array.tobytes()


def test_the_random_states_of_numpy_and_torch_and_sets_come_back() -> None:
    state = np.random.default_rng(7).bit_generator.state  # has integers of 128 bits
    generator = torch.Generator().manual_seed(7).get_state()
    found = there_and_back([state, generator, {3, 1, 2}, set()])
    assert found[0] == state
    assert found[1].equal(generator)
    assert found[2:] == [{3, 1, 2}, set()]


@pytest.mark.parametrize(
    "value", [object(), len, io.BytesIO(), np.array([object()]), np.array(["a"]), 1j, Exception("x")]
)
def test_a_value_of_another_class_is_refused_as_it_is_written(value: object) -> None:
    with pytest.raises(TypeError, match=r"a checkpoint holds .*; got "):
        write_tree(io.BytesIO(), {"a": [value]})


@given(st.data())
def test_damaged_bytes_are_a_value_error_or_another_plain_tree(data: st.DataObject) -> None:
    file = io.BytesIO()
    write_tree(file, {"a": np.arange(5), "b": [b"xyz", {1: None}], "c": torch.zeros(2, 2)})
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_tree(io.BytesIO(bytes(damaged)))
    except ValueError:
        return
    assert isinstance(found, (dict, list, tuple, set, str, int, float, bytes, type(None), np.ndarray, torch.Tensor))


def test_a_tree_as_deep_as_a_stack_is_a_value_error() -> None:
    for shape in (b"[" * 100_000 + b"]" * 100_000, b'["list",' * 5_000 + b"1" + b"]" * 5_000):
        file = io.BytesIO()
        np.save(file, np.frombuffer(shape, np.uint8))
        for dtype in DTYPES:
            np.save(file, np.zeros(0, dtype))
        file.seek(0)
        with pytest.raises(ValueError, match="not a tree of plain values"):
            read_tree(file)
