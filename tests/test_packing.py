"""Windows and rows: nothing lost, nothing split that need not be, nobody sees a neighbour."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import vocabulary

from multimodal_gpt.data.packing import (
    IGNORED,
    build_row,
    epoch_plan,
    pack,
    piece_stream,
    targets_of,
)
from multimodal_gpt.data.shards import StoredDocument, open_shards, write_manifest, write_shards
from multimodal_gpt.data.windows import find_windows, window_segments
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream.arrangement import Arrangement, from_stream, parse_order
from multimodal_gpt.stream.vocabulary import DOC, EOD, PAD, SPECIALS

VOCABULARY = vocabulary()
NAMES = VOCABULARY.names
ORDERS = [
    ["letters", "beats"],
    ["beats", "letters"],
    ["letters+beats"],
    ["beats+letters"],
    ["beats"],
]

words = st.text("abcde", min_size=1, max_size=60)
bars = st.lists(st.sets(st.integers(0, 3)).map(lambda s: tuple(sorted(s))), min_size=1, max_size=40).filter(
    any
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "letters": st.lists(words, min_size=1, max_size=2),
        "beats": st.lists(bars, min_size=1, max_size=2),
    },
).filter(bool)
arrangements = st.lists(
    st.builds(
        Arrangement,
        st.sampled_from(ORDERS).map(lambda o: parse_order(o, NAMES)),
        st.sampled_from([0.5, 1.0]),
        st.sampled_from([0.0, 0.3]),
        st.booleans(),
        st.sampled_from([0.0, 0.7]),
    ),
    min_size=1,
    max_size=3,
)


def stored(number, content):
    segments = [VOCABULARY.encode(n, c) for n in NAMES for c in content.get(n, ())]
    return StoredDocument(tuple(segments), {}, f"d/{number}", f"d/{number}")


def shards_of(folder, documents):
    files = write_shards(folder, "train", [stored(i, d) for i, d in enumerate(documents)])
    write_manifest(folder, {"modalities": list(NAMES), "splits": {"train": {"files": files}}})
    return open_shards(folder, "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packing")


def named(document, layouts):
    return set(document) & {n for a in layouts for n in a.names}


@settings(max_examples=60)
@given(st.lists(contents, min_size=1, max_size=6), arrangements, st.integers(16, 90), st.integers(0, 3))
def test_every_window_is_laid_out_once_and_as_long_as_planned(folder, documents, layouts, context, epoch):
    shards = shards_of(folder, documents)
    if not any(named(d, layouts) for d in documents):
        with pytest.raises(UserError, match="no document holds a modality that an arrangement names"):
            find_windows(shards, layouts, context)
        return
    windows = find_windows(shards, layouts, context)
    plan = epoch_plan(windows, 7, epoch)
    pieces = [piece for r in range(len(plan)) for piece in plan.row(r)]
    assert sorted(p.seed[2] for p in pieces) == list(range(len(windows)))
    assert {p.document for p in pieces} == {i for i, d in enumerate(documents) if named(d, layouts)}
    for piece in pieces:
        ids, clock = piece_stream(shards, VOCABULARY, windows, piece)
        assert len(ids) == len(clock) == plan.lengths[piece.seed[2]] <= context
        assert ids[0] == DOC
        assert ids[-1] == EOD or context < 40, "only a single bar may be longer than the context"


@settings(max_examples=60)
@given(contents, st.integers(20, 60))
def test_no_chunk_is_lost(folder, document, context):
    """Without drops and alternatives each chunk of a timed segment is in exactly one window."""
    content = {n: c[:1] for n, c in document.items()}
    shards = shards_of(folder, [content])
    windows = find_windows(shards, [Arrangement((("letters", "beats"),))], context)
    shown = {n: [] for n in content}
    for start, stop in zip(windows.start, windows.stop, strict=True):
        for s in window_segments(shards.segments(0), start, stop, windows.used, context):
            shown[s.modality].append(s)
    for name, pieces in shown.items():
        original = VOCABULARY.encode(name, content[name][0])
        whole = np.concatenate([p.ids for p in pieces])
        if name == "beats" or "beats" not in content:
            np.testing.assert_array_equal(whole, original.ids)
            assert all(p.clock is None or p.clock[0] == 0 for p in pieces)
        else:  # a header: the same in every window, whole unless it takes over half the context
            assert len({p.ids.tobytes() for p in pieces}) == 1
            n = len(pieces[0].ids)
            np.testing.assert_array_equal(pieces[0].ids, original.ids[:n])
            assert n == len(original.ids) or n == context // 2


def test_a_document_that_fits_is_not_cut(folder):
    shards = shards_of(folder, [{"letters": ["abc"], "beats": [((0,),) * 10]}])
    exact = 2 + (2 + 3) + (2 + 20)
    plain = [Arrangement((("letters",), ("beats",)))]
    assert len(find_windows(shards, plain, exact)) == 1
    cut = find_windows(shards, plain, exact - 1)
    assert cut.stop.tolist() == [36.0, 37.0], "as many bars as fit, then the rest"


def test_one_bar_longer_than_the_context_is_cut_hard_and_kept(folder):
    shards = shards_of(folder, [{"letters": ["abcde" * 30], "beats": [((0, 1, 2, 3),) * 3]}])
    windows = find_windows(shards, [Arrangement((("letters", "beats"),))], 16)
    assert windows.shortened == 1
    plan = epoch_plan(windows, 1, 0)
    assert plan.lengths.tolist() == [16] * 3


def test_alternatives_take_turns(folder):
    shards = shards_of(folder, [{"letters": ["a", "bb", "ccc"]}])
    windows = find_windows(shards, [Arrangement((("letters",),))], 32)
    lengths = Counter(int(epoch_plan(windows, 1, epoch).lengths[0]) for epoch in range(60))
    assert set(lengths) == {5, 6, 7} and min(lengths.values()) >= 10


def test_epochs_differ_and_repeat(folder):
    shards = shards_of(folder, [{"letters": ["abc"], "beats": [((0,),) * n]} for n in range(1, 30)])
    windows = find_windows(shards, [Arrangement((("letters",), ("beats",)), drop=0.2, shuffle=True)], 64)
    plans = [epoch_plan(windows, *key) for key in ((1, 0), (1, 0), (1, 1), (2, 0))]
    orders = [p.order.tolist() for p in plans]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert plans[0].lengths.tolist() != plans[2].lengths.tolist()


@settings(max_examples=30)
@given(st.lists(contents, min_size=1, max_size=8), st.integers(40, 120))
def test_documents_in_a_row_do_not_touch(folder, documents, context):
    shards = shards_of(folder, documents)
    windows = find_windows(shards, [Arrangement((("letters",), ("beats",)))], context)
    plan = epoch_plan(windows, 1, 0)
    for r in range(len(plan)):
        pieces = plan.row(r)
        row = build_row(shards, VOCABULARY, windows, pieces)
        targets = targets_of(row)
        assert all(a.shape == (context,) for a in (row.ids, row.document, row.position, row.clock, targets))
        filled = row.document >= 0
        assert set(row.document[filled]) == set(range(len(pieces)))
        assert not row.ids[~filled].any() and PAD == 0
        for number, piece in enumerate(pieces):
            (place,) = np.nonzero(row.document == number)
            ids, clock = piece_stream(shards, VOCABULARY, windows, piece)
            np.testing.assert_array_equal(row.ids[place], ids)
            np.testing.assert_array_equal(row.clock[place], clock)
            np.testing.assert_array_equal(row.position[place], np.arange(len(place)))
            np.testing.assert_array_equal(targets[place], [*ids[1:], IGNORED])
            segments = from_stream(VOCABULARY, ids)
            assert set(segments) <= set(documents[piece.document])
        assert (targets[~filled] == IGNORED).all()


@given(st.lists(st.integers(5, 64), max_size=200), st.integers(1, 20))
def test_packing_puts_everything_in_one_row_that_holds_it(lengths, open_rows):
    rows = pack(lengths, 64, open_rows)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)


def test_packing_wastes_little():
    rng = np.random.default_rng(1)
    lengths = rng.integers(20, 400, size=3000)
    rows = pack(lengths.tolist(), 512)
    assert lengths.sum() / (512 * len(rows)) > 0.98


def test_specials_are_where_padding_is_zero():
    assert SPECIALS[PAD] == "<pad>"
