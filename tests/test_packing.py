"""Plans and rows: nothing lost, nothing cut that need not be, nobody sees a neighbour, and rows are full."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import vocabulary

from multimodal_gpt.data.layouts import appearances, draw, open_stock
from multimodal_gpt.data.packing import LEAST, epoch_plan, pack
from multimodal_gpt.data.rows import IGNORED, build_row, piece_stream, targets_of
from multimodal_gpt.data.shards import StoredDocument, open_shards, write_manifest, write_shards
from multimodal_gpt.data.windows import window_of
from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT, GPTConfig
from multimodal_gpt.stream.arrangement import Arrangement, from_stream, parse_order, sample_layout
from multimodal_gpt.stream.vocabulary import DOC, EOD, PAD, SPECIALS

VOCABULARY = vocabulary()
NAMES = VOCABULARY.names
ORDERS = [["letters", "beats"], ["beats", "letters"], ["letters+beats"], ["beats+letters"], ["beats"]]
PLAIN = [Arrangement((("letters",), ("beats",)))]

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


def stored(number, content, label="d"):
    segments = [VOCABULARY.encode(n, c) for n in NAMES for c in content.get(n, ())]
    return StoredDocument(tuple(segments), {}, f"{label}/{number}", f"{label}/{number}")


def shards_of(folder, documents, labels=None, **manifest):
    labels = labels or ["d"] * len(documents)
    stores = [stored(i, d, label) for i, (d, label) in enumerate(zip(documents, labels, strict=True))]
    files = write_shards(folder, "train", stores)
    write_manifest(folder, {"modalities": list(NAMES), "splits": {"train": {"files": files}}, **manifest})
    return open_shards(folder, "train")


def random_tunes(count, low, high, header=4):
    """Documents of `low` to `high` bars of 2 to 4 tokens, with a short header."""
    rng = np.random.default_rng(1)
    beats = [
        tuple(tuple(range(k)) for k in rng.integers(1, 4, size=rng.integers(low, high))) for _ in range(count)
    ]
    return [{"letters": ["abcde"[:header]], "beats": [b]} for b in beats]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packing")


def named(document, layouts):
    return set(document) & {n for a in layouts for n in a.names}


def pieces_of(plan):
    return [piece for r in range(len(plan)) for piece in plan.row(r)]


@settings(max_examples=40)
@given(
    st.lists(contents, min_size=1, max_size=8),
    arrangements,
    st.integers(16, 90),
    st.integers(0, 3),
    st.booleans(),
)
def test_pieces_are_as_long_as_planned_and_show_all_that_is_laid_out(
    folder, documents, layouts, context, epoch, fill
):
    shards = shards_of(folder, documents)
    if not any(named(d, layouts) for d in documents):
        with pytest.raises(UserError, match="no document holds a modality that an arrangement names"):
            open_stock(shards, layouts, context)
        return
    stock = open_stock(shards, layouts, context)
    plan = epoch_plan(stock, 7, epoch, fill=fill)
    seen = {}
    for item in plan.order.tolist():
        piece = plan.piece(item)
        ids, clock = piece_stream(shards, VOCABULARY, piece, context)
        assert len(ids) == len(clock) == plan.lengths[item] <= context
        assert ids[0] == DOC
        seen.setdefault(piece.document, []).append((piece, ids))
    assert set(seen) == {i for i, d in enumerate(documents) if named(d, layouts)}
    drawn = plan.layouts
    for index, document in enumerate(drawn.document.tolist()):
        chosen = [shards.segments(document)[p] for p in drawn.place[index][drawn.kept[index]]]
        shown = sorted(seen[document], key=lambda found: found[0].start)
        if any(ids[-1] != EOD for _, ids in shown):
            assert context < 45, "only a single bar may be longer than the context"
            continue
        parts = [from_stream(VOCABULARY, ids) for _, ids in shown]
        timed = {s.modality for s in chosen if len(s.cuts)}
        for segment in chosen:
            found = [p[segment.modality] for p in parts if segment.modality in p]
            if segment.modality in timed or len(chosen) == 1:
                np.testing.assert_array_equal(np.concatenate(found), segment.ids)
            else:  # a header: the same in every window, whole unless it takes over half the context
                assert len(found) == len(parts) and len({f.tobytes() for f in found}) == 1
                n = len(found[0])
                np.testing.assert_array_equal(found[0], segment.ids[:n])
                assert n == len(segment.ids) or (n == context // 2 and plan.shortened[index]) or not timed


@settings(max_examples=40)
@given(st.lists(contents, min_size=1, max_size=8), st.integers(40, 120))
def test_documents_in_a_row_do_not_touch(folder, documents, context):
    shards = shards_of(folder, documents)
    plan = epoch_plan(open_stock(shards, PLAIN, context), 1, 0)
    for r in range(len(plan)):
        pieces = plan.row(r)
        row = build_row(shards, VOCABULARY, pieces, context)
        targets = targets_of(row)
        assert all(a.shape == (context,) for a in (row.ids, row.document, row.position, row.clock, targets))
        filled = row.document >= 0
        assert set(row.document[filled]) == set(range(len(pieces)))
        assert not row.ids[~filled].any() and PAD == 0
        for number, piece in enumerate(pieces):
            (place,) = np.nonzero(row.document == number)
            ids, clock = piece_stream(shards, VOCABULARY, piece, context)
            np.testing.assert_array_equal(row.ids[place], ids)
            np.testing.assert_array_equal(row.clock[place], clock)
            np.testing.assert_array_equal(row.position[place], np.arange(len(place)))
            np.testing.assert_array_equal(targets[place], [*ids[1:], IGNORED])
            assert set(from_stream(VOCABULARY, ids)) <= set(documents[piece.document])
        assert (targets[~filled] == IGNORED).all()


def test_a_document_that_fits_is_not_cut(folder):
    shards = shards_of(folder, [{"letters": ["abc"], "beats": [((0,),) * 10]}])
    exact = 2 + (2 + 3) + (2 + 20)
    for context, places in ((exact, [(0.0, np.inf)]), (exact - 1, [(0.0, 36.0), (36.0, 37.0)])):
        plan = epoch_plan(open_stock(shards, PLAIN, context), 1, 0, fill=False)
        assert sorted((p.start, p.stop) for p in pieces_of(plan)) == places, "as many bars as fit, the rest"


def test_windows_are_cut_for_the_arrangement_that_is_drawn(folder):
    """Not for the longest of all: taking turns costs a tag per bar, one after the other does not."""
    shards = shards_of(folder, [{"letters": ["a"], "beats": [((0,),) * 60]}])
    both = [*PLAIN, Arrangement((("letters", "beats"),))]
    windows = {}
    for epoch in range(8):
        plan = epoch_plan(open_stock(shards, both, 64), 1, epoch, fill=False)
        pieces = sorted(pieces_of(plan), key=lambda p: p.start)
        windows[pieces[0].layout.order] = [p.start / 4 for p in pieces]
    assert windows == {both[0].order: [0, 28, 56], both[1].order: [0, 19, 38, 57]}, "bars"


def test_one_bar_longer_than_the_context_is_cut_hard_and_kept(folder):
    shards = shards_of(folder, [{"letters": ["abcde" * 30], "beats": [((0, 1, 2, 3),) * 3]}])
    plan = epoch_plan(open_stock(shards, [Arrangement((("letters", "beats"),))], 16), 1, 0)
    assert plan.lengths[plan.order].tolist() == [16] * 3
    assert plan.shortened.tolist() == plan.cut.tolist() == [True]


def test_a_window_starts_its_clock_at_zero_and_repeats_its_header(folder):
    shards = shards_of(folder, random_tunes(1, 100, 101))
    plan = epoch_plan(open_stock(shards, PLAIN, 64), 1, 0)
    pieces = pieces_of(plan)
    assert len(pieces) >= 5
    for piece in pieces:
        chosen = {s.modality: s for s in shards.segments(0)}
        shown = window_of(chosen, piece.start, piece.stop, 64)
        assert shown["beats"].clock[0] == 0
        np.testing.assert_array_equal(shown["letters"].ids, chosen["letters"].ids)
        assert len(shown["beats"].ids) >= 64 // LEAST


def test_alternatives_take_turns(folder):
    shards = shards_of(folder, [{"letters": ["a", "bb", "ccc"]}])
    stock = open_stock(shards, [Arrangement((("letters",),))], 32)
    lengths = Counter(int(draw(stock, 1, epoch).lengths[0]) for epoch in range(60))
    assert set(lengths) == {5, 6, 7} and min(lengths.values()) >= 10


def test_epochs_differ_and_repeat(folder):
    shards = shards_of(folder, random_tunes(40, 5, 40))
    stock = open_stock(shards, [Arrangement((("letters",), ("beats",)), drop=0.2, shuffle=True)], 64)
    plans = [epoch_plan(stock, *key) for key in ((1, 0), (1, 0), (1, 1), (2, 0))]
    orders = [p.order.tolist() for p in plans]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert [pieces_of(plans[0])] == [pieces_of(plans[1])]
    assert plans[0].layouts.lengths.tolist() != plans[2].layouts.lengths.tolist()


def kind(layout):
    gap = layout.gap and (layout.gap.modality, layout.gap.stop - layout.gap.start)
    return layout.order, gap


@pytest.mark.parametrize(("held", "kinds"), [(("letters", "beats"), 9), (("beats",), 3), (("letters",), 1)])
def test_layouts_are_drawn_as_often_as_one_at_a_time(folder, held, kinds):
    content = {"letters": ["abc"], "beats": [((0,),) * 6]}
    layouts = [
        Arrangement((("letters",), ("beats",)), weight=1.0, drop=0.3, shuffle=True),
        Arrangement((("beats", "letters"),), weight=2.0, drop=0.1, hole=0.5),
        Arrangement((("letters",),), weight=0.5),
        Arrangement((("beats",),), weight=0.0),
    ]
    shards = shards_of(folder, [{n: content[n] for n in held}])
    count = 4000
    drawn = draw(open_stock(shards, layouts, 64, np.array([float(count)])), 3, 0)
    together = Counter(kind(drawn.layout(i, drawn.kept[i], *drawn.gap[i, 1:].tolist())) for i in range(count))
    rng = np.random.default_rng(5)
    chunks = {s.modality: len(s.edges) - 1 for s in shards.segments(0)}
    alone = Counter(kind(sample_layout(layouts, chunks, rng)) for _ in range(count))
    assert set(together) == set(alone) and len(alone) == kinds
    for layout, expected in alone.items():
        assert abs(together[layout] - expected) < 5 * np.sqrt(2 * expected), layout


def test_gaps_lie_everywhere_inside(folder):
    shards = shards_of(folder, [{"beats": [((0,),) * 6]}])
    layouts = [Arrangement((("beats",),), hole=1.0)]
    drawn = draw(open_stock(shards, layouts, 64, np.array([3000.0])), 3, 0)
    assert set(map(tuple, drawn.gap[:, 1:].tolist())) == {(a, a + w) for w in (1, 2) for a in range(1, 6 - w)}


def test_a_weight_says_how_often_a_document_is_seen(folder):
    tunes = random_tunes(60, 5, 30)
    labels = [("none", "half", "one", "three")[i % 4] for i in range(len(tunes))]
    weights = {"none": 0, "half": 0.5, "three": 3.0, "elsewhere": 9.0}
    shards = shards_of(folder, tunes, labels, weights=weights)
    assert shards.weights.tolist() == [weights.get(label, 1.0) for label in labels]
    stock = open_stock(shards, [Arrangement((("letters",), ("beats",)), drop=0.4)], 96, shards.weights)
    counts, first = Counter(), set()
    for epoch in range(4):
        plan = epoch_plan(stock, 5, epoch)
        whole = Counter(plan.layouts.document.tolist())
        assert {p.document for p in pieces_of(plan)} == set(whole)
        assert all(whole[i] == weights.get(label, 1) for i, label in enumerate(labels) if label != "half")
        first |= {i for i in whole if labels[i] == "half"} if epoch == 0 else set()
        counts += whole
    assert {label: {counts[i] for i, x in enumerate(labels) if x == label} for label in set(labels)} == {
        "none": {0},
        "half": {2},
        "one": {4},
        "three": {12},
    }
    assert 0 < len(first) < 15, "halves are spread over the epochs"
    drawn = plan.layouts
    layouts = {i: {tuple(k) for k in drawn.kept[drawn.document == i].tolist()} for i in range(60)}
    assert any(len(kept) > 1 for kept in layouts.values()), "each appearance has its own layout"


@given(st.floats(0, 4), st.integers(0, 9))
def test_weights_are_kept_over_many_epochs(weight, seed):
    seen = [len(appearances(np.array([weight]), seed, epoch)) for epoch in range(50)]
    assert {int(weight), int(np.ceil(weight))} >= set(seen)
    assert abs(sum(seen) - 50 * weight) < 1


def test_only_documents_of_weight_zero(folder):
    shards = shards_of(folder, random_tunes(3, 5, 30), weights={"d": 0})
    with pytest.raises(UserError, match=r"data.weights: every document of the train split has weight 0"):
        open_stock(shards, PLAIN, 64, shards.weights)


def test_documents_without_a_weight_count_once(folder):
    shards = shards_of(folder, random_tunes(3, 5, 30))
    assert shards.weights.tolist() == [1.0] * 3


@given(st.lists(st.integers(5, 64), max_size=200))
def test_packing_puts_everything_in_one_row_that_holds_it(lengths):
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)


def test_a_piece_goes_where_it_leaves_least():
    assert pack([30, 50, 14, 34], 64) == [[1, 2], [3, 0]]


@pytest.mark.parametrize(("low", "high", "cuts"), [(5, 60, "none"), (105, 150, "few"), (60, 400, "windows")])
def test_rows_are_full_whatever_the_lengths(folder, low, high, cuts):
    """Short documents are not cut for it, of medium ones few, and of long ones only what is cut anyway."""
    shards = shards_of(folder, random_tunes(400, low, high))
    stock = open_stock(shards, PLAIN, 512)
    plan, plain = epoch_plan(stock, 1, 0), epoch_plan(stock, 1, 0, fill=False)
    long = plan.layouts.lengths > 512
    filling = (plan.cut & ~long).mean()
    assert plan.utilisation >= 0.98
    assert plan.tokens == sum(len(piece_stream(shards, VOCABULARY, p, 512)[0]) for p in pieces_of(plan))
    assert not (plain.cut & ~long).any()
    if cuts == "none":
        assert not long.any() and filling == 0
    elif cuts == "few":
        assert not long.any() and plain.utilisation < 0.8 and 0 < filling < 0.25
    else:
        assert long.mean() > 0.5 and filling == 0


def test_windows_are_not_crumbs(folder):
    shards = shards_of(folder, random_tunes(300, 60, 400))
    plan = epoch_plan(open_stock(shards, PLAIN, 512), 1, 0)
    windows = plan.order[plan.order >= len(plan.layouts)]
    assert len(windows) > 300 and plan.lengths[windows].min() >= 512 // LEAST


@pytest.mark.parametrize("clock", [0.0, 0.5])
def test_a_document_learns_the_same_in_a_packed_row_as_alone(folder, clock):
    shards = shards_of(folder, random_tunes(30, 10, 60))
    context = 128
    layouts = [Arrangement((("letters", "beats"),)), *PLAIN]
    plan = epoch_plan(open_stock(shards, layouts, context), 1, 0)
    config = GPTConfig(64, 2, 32, 4, 2, 48, context, clock=clock)
    torch.manual_seed(0)
    net = GPT(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that places and clocks matter

    def losses(pieces):
        row = build_row(shards, VOCABULARY, pieces, context)
        names = ("ids", "position", "document", "clock")
        given = {n: torch.from_numpy(getattr(row, n))[None] for n in names}
        return row, net.token_losses(net(**given), torch.from_numpy(targets_of(row))[None])[0]

    compared = 0
    for r in range(len(plan)):
        pieces = plan.row(r)
        with torch.no_grad():
            row, together = losses(pieces)
            for number, piece in enumerate(pieces):
                _, alone = losses([piece])
                inside = torch.from_numpy(row.document == number)
                torch.testing.assert_close(together[inside], alone[: int(inside.sum())], atol=1e-5, rtol=1e-5)
                compared += len(pieces) > 1
    assert compared > 20


def test_specials_are_where_padding_is_zero():
    assert SPECIALS[PAD] == "<pad>"
