"""What is a profile, and what is none: one decision for profiler, trainer, service and command line."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from driftline.configs.errors import InputError
from driftline.graph.profile import Profile, parse_profile
from driftline.graph.view import FACETS
from driftline.serving.profiles import ProfileStore
from driftline.stream.cli.inspect import written_profiles
from driftline.stream.learn.profiles import StreamProfiles

WIDTH = 8


def record(**changes):
    vectors = np.eye(len(FACETS), WIDTH, dtype=np.float32)
    profile = Profile("u", {"crowd": "collectors"}, "Text.", "template", {}, 1, 5, 5, vectors=vectors)
    return orjson.dumps({**profile.to_dict(), **changes})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"junk \xff",
        b"[]",
        b"null",
        b'{"user_id": "u"}',
        record(facets=["crowd"]),
        record(facets=None),
        record(valid_from_ms="x"),
        record(valid_from_ms=None),
        record(valid_from_ms=2**63),
        record(version=2**31),
        record(version=1e308),
        record(embedding="AAAA"),
        record(embedding="not base64"),
        record(embedding=[[1.0] * WIDTH] * 3 + [[1.0]]),
        record(embedding={"crowd": [1.0]}),
        orjson.dumps({**orjson.loads(record()), "embedding": "AHwAfAB8AHw="}),  # four infinities
    ],
)
def test_what_is_no_profile_is_none_for_every_reader(value):
    with pytest.raises(InputError, match="not a profile"):
        parse_profile(value)
    store, stream = ProfileStore(text_dim=WIDTH), StreamProfiles(WIDTH)
    stream.take(value)
    if value:  # an empty record forgets the user
        assert not store.put(b"u", value)
    assert (stream.invalid, written_profiles([value])) == (1, ([], 1))


@pytest.mark.parametrize("value", [record(), record(embedding=np.eye(len(FACETS), WIDTH).tolist())])
def test_what_is_a_profile_is_one_for_every_reader_however_its_vectors_are_written(value):
    store, stream = ProfileStore(text_dim=WIDTH), StreamProfiles(WIDTH)
    stream.take(value)
    assert store.put(b"u", value)
    np.testing.assert_array_equal(store.get("u", 5).vectors.facets, np.eye(len(FACETS), WIDTH))
    np.testing.assert_array_equal(stream.at("u", 5).facets, np.eye(len(FACETS), WIDTH))
    ((shown,), refused) = written_profiles([value])
    assert (shown.facets["crowd"], refused) == ("collectors", 0)
