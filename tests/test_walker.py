"""The walk: legal whatever the model says and however little room there is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_gpt.generation.closing import FAR, closing_chunks, rounds_to_see
from multimodal_gpt.generation.rules import Rules
from multimodal_gpt.generation.sampling import Sampling, legal_logits, sample, uniforms
from multimodal_gpt.generation.target import Target, members_of
from multimodal_gpt.generation.walker import Plan, Walker
from multimodal_gpt.stream.arrangement import from_stream, merge_chunks
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import END, MIX, Encoded, Vocabulary

TOYS = Path(__file__).parent / "toys"
VOCABULARY = Vocabulary(
    [
        Modality("letters", str(TOYS / "letters.py")),
        Modality("beats", str(TOYS / "beats.py")),
        Modality("drums", str(TOYS / "beats.py"), {"places": 3}),
    ]
)
MEMBERS = members_of(VOCABULARY)
TAGS = {m.tag: n for n, m in MEMBERS.items()}
RULES = Rules(MEMBERS)
ORDERS = [
    ("letters",),
    ("beats",),
    ("beats", "drums"),
    ("drums", "beats"),
    ("letters", "beats"),
    ("beats", "letters"),
    ("beats", "letters", "drums"),
]
LAYOUTS = [
    (o, w) for o in ORDERS for n in range(1, 2 ** len(o)) if (w := [m for i, m in enumerate(o) if n >> i & 1])
]


def known(name: str, seed: int, length: int) -> Encoded:
    tokenizer = VOCABULARY.tokenizer(name)
    ids = tokenizer.grammar().random_walk(np.random.default_rng(seed), length)
    return Encoded(name, ids, tokenizer.clock(ids), tokenizer.cuts(ids), 1)


def target(order, wanted, seed: int = 0, length: int = 6) -> Target:
    return Target(
        tuple(order), {n: known(n, seed + i, length) for i, n in enumerate(order) if n not in wanted}
    )


def walk(targets, budget, seed: int = 0, how: Sampling | None = None) -> list[np.ndarray]:
    """Random logits at temperature 5, to the end of every row."""
    plan = Plan(RULES, targets, budget)
    walker = Walker(plan)
    noise = torch.Generator().manual_seed(seed)
    ids = [p.prefix.ids.tolist() for p in plan.programs]
    for step in range(max(budget)):
        allowed = walker.allowed()
        assert allowed.any(1).all()
        logits = torch.randn(allowed.shape, generator=noise) * 8
        legal = legal_logits(logits, torch.from_numpy(allowed))
        uniform = torch.as_tensor(uniforms((seed, step), len(ids)))
        column = sample(legal, uniform, torch.full((len(ids),), 5.0), how or Sampling())
        chosen = walker.ids(column.numpy())
        for row in np.flatnonzero(~walker.done).tolist():
            ids[row].append(int(chosen[row]))
        walker.advance(chosen)
        if walker.done.all():
            break
    assert walker.done.all()
    return [np.array(row) for row in ids]


def check(made: np.ndarray, asked: Target, budget: int) -> None:
    """The walk is a legal part: grammars accept it, given segments are whole, chunks take turns by time."""
    assert len(made) <= budget and made[-1] == END and (made[:-1] != END).all()
    parts = from_stream(VOCABULARY, made)
    assert set(parts) == set(asked.order)
    for name in asked.wanted:
        assert VOCABULARY.tokenizer(name).grammar().accepts(parts[name])
        assert VOCABULARY.tokenizer(name).units(VOCABULARY.decode(name, parts[name])) >= 1
    for name, segment in asked.given.items():
        assert (parts[name] == segment.ids).all()
    if not asked.mixed:
        assert made[0] == MEMBERS[asked.order[0]].tag
        return
    assert made[0] == MIX
    tags = [TAGS[i] for i in made.tolist() if i in TAGS]
    if all(MEMBERS[n].turns for n in asked.order):
        assert tags == [asked.order[s] for s, _, _ in merge_chunks([times(n, parts[n]) for n in asked.order])]


def times(name: str, ids: np.ndarray) -> np.ndarray:
    tokenizer = VOCABULARY.tokenizer(name)
    clock = tokenizer.clock(ids)[tokenizer.cuts(ids)]
    return clock / clock[1] if len(clock) > 1 else clock  # toys count bars of different lengths


@pytest.mark.parametrize(("order", "wanted"), LAYOUTS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), spare=st.integers(0, 30), length=st.integers(1, 12))
def test_every_walk_is_legal(order, wanted, seed, spare, length):
    asked = [target(order, wanted, seed + row, length + row) for row in range(3)]
    least = [Plan(RULES, [t], [64]).least(0) for t in asked]
    budget = [n + spare * row for row, n in enumerate(least)]
    for made, one, room in zip(walk(asked, budget, seed), asked, budget, strict=True):
        check(made, one, room)


@pytest.mark.parametrize(("order", "wanted"), LAYOUTS)
def test_least_is_exact(order, wanted):
    asked = target(order, wanted)
    least = Plan(RULES, [asked], [64]).least(0)
    assert {len(walk([asked], [least], seed)[0]) for seed in range(5)} == {least}
    shortest = min(len(walk([asked], [least + 6], seed, Sampling(top_k=1))[0]) for seed in range(8))
    assert shortest >= least
    walker = Walker(Plan(RULES, [asked], [least - 1]))
    assert not (walker.allowed() & walker_choice(walker)).any()


def walker_choice(walker: Walker) -> np.ndarray:
    """(B, 1) bool: whether columns are a choice: inside a stretch all of them, at a forced id none."""
    return walker.inside[:, None]


def test_plain_walk_agrees_with_the_grammar_at_every_step():
    grammar = MEMBERS["beats"].grammar
    walker = Walker(Plan(RULES, [Target(("beats",))], [100]))
    state = 0
    for local in known("beats", 3, 20).ids.tolist():
        allowed = walker.allowed()[0].tolist()
        assert allowed[: grammar.size] == (grammar.next_state[state] >= 0).tolist()
        assert allowed[-1] == grammar.final[state]
        state = int(grammar.next_state[state, local])
        walker.advance(np.array([MEMBERS["beats"].first + local]))
    assert walker.state.tolist() == [[state]]


@pytest.mark.parametrize("name", ["letters", "beats"])
def test_one_gather_says_the_same(name):
    """A part of its own is looked up in one table; the general way gives the same at every step."""
    budget = [4, 9, 30]
    quick, general = (Walker(Plan(RULES, [Target((name,))] * 3, budget)) for _ in range(2))
    general.reach = None
    noise = torch.Generator().manual_seed(0)
    for _ in range(max(budget)):
        allowed = quick.allowed()
        assert (allowed == general.allowed()).all()
        legal = legal_logits(torch.randn(allowed.shape, generator=noise), torch.from_numpy(allowed))
        ids = quick.ids(legal.argmax(-1).numpy())
        quick.advance(ids)
        general.advance(ids)
    assert quick.done.all() and general.done.all()


def test_chunk_borders_in_turns():
    """Bar, hit | tag of the other: a bar line comes first in a chunk and only there."""
    walker = Walker(Plan(RULES, [Target(("beats", "drums"))], [100]))
    beats, drums = MEMBERS["beats"], MEMBERS["drums"]
    assert walker.allowed()[0].nonzero()[0].tolist() == [0]
    walker.advance(np.array([beats.first]))
    assert walker.allowed()[0].nonzero()[0].tolist() == [1, 2, 3, 4, 10]  # hits, or the tag of drums
    walker.advance(np.array([drums.tag]))
    walker.advance(np.array([drums.first]))
    assert walker.allowed()[0].nonzero()[0].tolist() == [5 + 1, 5 + 2, 5 + 3, 10]  # no end: no hit so far
    walker.advance(np.array([drums.first + 1]))
    assert walker.allowed()[0].nonzero()[0].tolist() == [5 + 2, 5 + 3, 10]  # beats has none yet
    for token in (beats.tag, beats.first, beats.first + 2, drums.tag, drums.first):
        walker.advance(np.array([token]))
    assert walker.allowed()[0, -2:].tolist() == [True, True]  # the end, or another round
    walker.advance(np.array([END]))
    assert walker.done.all()


def test_rows_walk_on_alone_as_they_did_together():
    asked = [target(("beats", "drums"), ["drums"], seed, 5 + seed) for seed in range(3)]
    together = Walker(Plan(RULES, asked, [60] * 3))
    together.keep([2, 0])
    for row, one in enumerate([asked[2], asked[0]]):
        alone = Walker(Plan(RULES, [one], [60]))
        assert (alone.allowed() == together.allowed()[row : row + 1]).all()
        assert (alone.way_out == together.way_out[row]).all()


def test_rows_that_join_walk_as_they_would_alone():
    """Programs of unlike lengths; the one that leaves has come far."""
    asked = [
        target(("beats", "drums"), ["drums"], seed, length) for seed, length in enumerate((3, 12, 7, 16))
    ]
    plan = Plan(RULES, asked, [60, 70, 65, 80])
    walker = Walker(plan, [0, 1])
    while not walker.done[0]:
        walker.advance(walker.ids(walker.allowed().argmax(1)))
    walker.put([0], Walker(plan, [3]))
    walker.keep([1, 0])
    walker.put([0], Walker(plan, [2]))
    alone = [Walker(plan, [number]) for number in (2, 3)]
    while not walker.done.all():
        ids = walker.ids(walker.allowed().argmax(1))
        for row, one in enumerate(alone):
            assert (one.allowed()[0] == walker.allowed()[row]).all() and one.way_out[0] == walker.way_out[row]
            one.advance(ids[row : row + 1])
        walker.advance(ids)
    assert all(one.done.all() for one in alone)


def test_closing_distances_by_search():
    """Against a search over whole walks, chunk by chunk."""
    grammar = MEMBERS["drums"].grammar
    closing = closing_chunks(grammar, 4)
    ids = range(grammar.size)
    reach = np.where(grammar.final, 0, FAR)
    for k in range(5):
        assert (closing.between[k] == reach).all()
        inside = reach.copy()
        for _ in range(10):
            for state in range(len(inside)):
                after = [grammar.next_state[state, i] for i in ids if not grammar.cut[i]]
                inside[state] = min([inside[state], *(inside[a] + 1 for a in after if a >= 0)])
        assert (closing.inside[k] == inside).all()
        border = [[grammar.next_state[s, i] for i in ids if grammar.cut[i]] for s in range(len(inside))]
        reach = np.array([min([FAR, *(inside[a] + 1 for a in after if a >= 0)]) for after in border])
    assert rounds_to_see(closing) == 1
    assert (closing_chunks(grammar, 60).inside[60, 1:] == closing.inside[4, 1:] + 56).all()
