"""Shards: what is written is read, whatever it is; damage is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from multimodal_gpt.data import batches
from multimodal_gpt.data import shards as module
from multimodal_gpt.data.batches import StoredDocument
from multimodal_gpt.data.shards import (
    open_shards,
    read_manifest,
    write_manifest,
    write_shards,
)
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.vocabulary import Encoded

NAMES = ["a", "b", "c"]


@st.composite
def segments(draw):
    n = draw(st.integers(1, 20))
    ids = draw(stn.arrays(np.int32, n, elements=st.integers(0, 2**31 - 1)))
    clock = draw(st.none() | stn.arrays(np.float32, n, elements=st.floats(0, 1e6, width=32)))
    cuts = np.array(sorted(draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    return Encoded(draw(st.sampled_from(NAMES)), ids, clock, cuts, draw(st.integers(0, 2**40)))


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
stored = st.builds(
    StoredDocument,
    st.lists(segments(), min_size=1, max_size=4).map(tuple),
    st.dictionaries(st.text(), plain, max_size=3),
    words,
    words,
    st.integers(-12, 12),
)


def write(folder, documents, split="train"):
    folder.mkdir(exist_ok=True)
    splits = {split: {"files": write_shards(folder, split, documents)}}
    write_manifest(folder, {"modalities": NAMES, "splits": splits})
    return folder


def same(a, b):
    assert (a.metadata, a.source, a.group, a.shift) == (b.metadata, b.source, b.group, b.shift)
    assert len(a.segments) == len(b.segments)
    for x, y in zip(a.segments, b.segments, strict=True):
        assert (x.modality, x.units, x.clock is None) == (y.modality, y.units, y.clock is None)
        for left, right in ((x.ids, y.ids), (x.cuts, y.cuts), (x.clock, y.clock)):
            if left is not None:
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)


@settings(max_examples=25)
@given(st.lists(stored, max_size=6))
def test_what_is_written_is_read(tmp_path_factory, documents):
    shards = open_shards(write(tmp_path_factory.mktemp("s"), documents), "train", verify=True)
    assert len(shards) == len(documents)
    lengths = shards.lengths
    flat = [s for d in documents for s in d.segments]
    for i, document in enumerate(documents):
        same(shards.document(i), document)
        assert lengths.offsets[i + 1] - lengths.offsets[i] == len(document.segments)
    assert lengths.tokens.tolist() == [len(s.ids) for s in flat]
    assert lengths.chunks.tolist() == [len(s.edges) - 1 for s in flat]
    assert lengths.timed.tolist() == [s.clock is not None for s in flat]
    assert [NAMES[m] for m in lengths.modality] == [s.modality for s in flat]
    for wrong in (-1, len(documents)):
        with pytest.raises(IndexError):
            shards.document(wrong)


def numbered(count, tokens=10):
    for i in range(count):
        ids = np.arange(i, i + tokens, dtype=np.int32)
        segment = Encoded("a", ids, ids.astype(np.float32), np.array([0, 5], dtype=np.int64), tokens)
        yield StoredDocument((segment,), {"i": i}, f"d/{i}", f"g{i}")


def test_files_and_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 3)
    monkeypatch.setattr(module, "BYTES_PER_FILE", 1000)
    shards = open_shards(write(tmp_path / "s", numbered(20)), "train")
    rows = [entry["rows"] for entry in shards.files]
    assert sum(rows) == 20 and len(rows) > 2 and max(rows) <= 9
    for i, expected in enumerate(numbered(20)):
        same(shards.document(i), expected)
    with pytest.raises(ValueError, match="read-only"):
        shards.document(0).segments[0].ids[0] = 1


def test_the_same_documents_give_the_same_bytes(tmp_path):
    folders = [write(tmp_path / name, numbered(20)) for name in "xy"]
    first, second = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert first == second


def test_pandas_and_friends_can_read_them(tmp_path):
    import pyarrow as pa

    folder = write(tmp_path / "s", numbered(2))
    table = pa.ipc.open_file(str(folder / "train-00000.arrow")).read_all()
    (first, _) = table.to_pylist()
    assert first["segments"][0]["ids"] == list(range(10)) and json.loads(first["metadata"]) == {"i": 0}


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def scramble(path):
    path.write_bytes(b"x" * path.stat().st_size)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("train-00000.arrow", cut_short, "the shard is damaged: {less} of {size} bytes"),
        ("train-00000.arrow", flip, "the shard is damaged: its SHA-256 is not the manifest's"),
        ("train-00000.arrow", remove, "the shard is missing"),
        ("manifest.json", cut_short, "the file is damaged"),
        ("manifest.json", flip, "the file is damaged"),
    ],
)
def test_damage_is_named_with_the_way_out(tmp_path, name, harm, message):
    path = write(tmp_path / "s", numbered(20)) / name
    size = path.stat().st_size
    harm(path)
    with pytest.raises(UserError) as error:
        open_shards(path.parent, "train", verify=True)
    expected = message.format(size=size, less=size - 10)
    assert str(error.value) == f"{path}: {expected} (prepare again: mmgpt prepare RECIPE --force)"


def test_what_is_no_arrow_file_is_damaged_even_unverified(tmp_path):
    path = write(tmp_path / "s", numbered(3)) / "train-00000.arrow"
    scramble(path)
    with pytest.raises(UserError, match="the shard is damaged"):
        open_shards(path.parent, "train")


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match=r"there are no shards \(mmgpt prepare RECIPE\)"):
        read_manifest(tmp_path)
