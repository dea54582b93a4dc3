"""Readout: what a run says of music that it has not met, in words and in tags.

In two ways. Written: it writes freely, and what its words state in the recipe's phrases is right or wrong.
Chosen: which of all values of a field makes the phrase that says it the likeliest one; that asks every piece
for every field, whatever the run would rather talk about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multimodal_gpt.evaluation.context_gain import derange
from multimodal_gpt.evaluation.documents import Piece, holding, spread
from multimodal_gpt.evaluation.guessing import NEEDED
from multimodal_gpt.evaluation.making import USUAL, Prompt, fitting, is_trained, make, prompt_of
from multimodal_gpt.evaluation.music import Roles, content_of, heard_key, key_in_words, roles_of
from multimodal_gpt.evaluation.prompts import FIELDS, pools, spelt
from multimodal_gpt.evaluation.subject import Subject
from multimodal_gpt.evaluation.tables import HIGHER, MODEL, Figure, Row, Table, ratio_row
from multimodal_gpt.evaluation.wording import Phrasing, Wording, bleu, most_common
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.session import Run
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import END, Encoded

MAJORITY, FINDER, STRANGER = "majority", "key finder", "another tune"
COLUMNS = (MODEL, MAJORITY, FINDER, STRANGER)
SPARE = 48
"""Tokens of the context that are kept for words where music has to be cut."""
ABOUT = (
    "Words about held-out tunes. chosen: the value whose phrase is the likeliest after the music; written: "
    "facts that freely written words state; tags: the likeliest tags. majority: the commonest value in "
    "training; key finder: Krumhansl and Kessler (1982); another tune: the same answers against another "
    "tune's facts."
)


@dataclass(frozen=True, eq=False)
class Case:
    """A held-out piece: its music, what is known of it, and captions that are right."""

    piece: Piece
    given: Mapping[str, Encoded]
    facts: Mapping[str, str]
    finder: str
    captions: tuple[str, ...]


def readout(subject: Subject) -> Table:
    """The table of the question; without rows where a run can't say anything about melodies."""
    roles = roles_of(subject.run)
    if roles.melody is None:
        return _table((), ("the run knows no melodies",))
    cases = _cases(subject, roles)
    if not cases:
        return _table((), ("no melody is held out of which anything is known",))
    asking = _Asking(subject, roles, cases)
    rows = [*asking.chosen(), *asking.written(), *asking.tagged()]
    return _table(tuple(rows), tuple(asking.notes))


def _table(rows: tuple[Row, ...], notes: tuple[str, ...]) -> Table:
    return Table("readout", "What does it say of music?", ABOUT, COLUMNS, rows, notes)


def _cases(subject: Subject, roles: Roles) -> list[Case]:
    cases = []
    melody, vocabulary = str(roles.melody), subject.run.vocabulary
    for piece in spread(holding(subject.pieces, melody), subject.scope.samples):
        facts = spelt(piece.metadata)
        music = {
            n: piece.segments[n]
            for n in (roles.melody, roles.chords)
            if n is not None and n in piece.segments
        }
        captions = [vocabulary.decode(segment.modality, segment.ids) for segment, _ in piece.captions]
        finder = key_in_words(heard_key(content_of(vocabulary, piece, melody).notes))
        if facts or captions:
            given = fitting(subject.run, music, 0, SPARE)
            cases.append(Case(piece, given, facts, finder, tuple(captions)))
    return cases


class _Asking:
    """The ways to ask one subject, which share its cases; `notes` tell what could not be asked."""

    def __init__(self, subject: Subject, roles: Roles, cases: Sequence[Case]) -> None:
        self.subject, self.roles, self.cases = subject, roles, cases
        self.notes: list[str] = []
        cut = sum(any(len(s.ids) < len(c.piece.segments[n].ids) for n, s in c.given.items()) for c in cases)
        if cut:
            self.notes.append(
                f"{cut} of {len(cases)} tunes are longer than the context: their first bars count"
            )
        known = [spelt(piece.metadata) for piece in subject.training or subject.pieces]
        self.values = {field: sorted({facts[field] for facts in known if field in facts}) for field in FIELDS}
        self.values["key"] = pools(subject, roles).get("key", self.values["key"])
        self.majority = {field: most_common(f[field] for f in known if field in f) for field in FIELDS}
        templates = subject.run.recipe.data.captions.templates if self._words else ()
        self.wording = Wording(tuple(templates), tuple(self.values["type"]))

    @property
    def _words(self) -> bool:
        """Whether the run writes words about music, in phrases of its recipe."""
        words = self.roles.words
        return words is not None and words == self.subject.run.recipe.data.captions.into and self._told(words)

    def _told(self, name: str) -> bool:
        known = max((tuple(case.given) for case in self.cases), key=len)
        return is_trained(self.subject.run, (name,), known)

    # Chosen

    def chosen(self) -> list[Row]:
        """A row for each field: the likeliest phrase."""
        rows: list[Row] = []
        if not self._words:
            self.notes.append("no arrangement of the recipe has words after music")
            return rows
        for field in FIELDS:
            phrasing = self.wording.phrasing(field)
            there = [i for i, c in enumerate(self.cases) if field in c.facts]
            if phrasing is None or len(self.values[field]) < 2:
                continue
            there = [i for i in there if set(phrasing.others) <= set(self.cases[i].facts)]
            answers = {i: self._likeliest(self.cases[i], phrasing) for i in there}
            self.subject.advance(f"{len(there)} x which {field}")
            also = f" (knowing {', '.join(phrasing.others)})" if phrasing.others else ""
            rows += self._row(
                f"{field}, chosen{also}", field, [(i, a) for i, a in answers.items() if a is not None]
            )
        return rows

    def _likeliest(self, case: Case, phrasing: Phrasing) -> str | None:
        run, words = self.subject.run, str(self.roles.words)
        prompt = prompt_of(run, words, case.given)
        values = self.values[phrasing.field]
        said = [run.vocabulary.encode(words, phrasing.of(value, case.facts)).ids for value in values]
        if prompt is None or len(prompt.ids) + max(map(len, said)) > run.engine.context:
            return None
        return values[int(np.argmax(phrase_scores(run, words, prompt, said)))]

    # Written

    def written(self) -> list[Row]:
        """A row for each field that freely written words state, and BLEU."""
        if not self._words:
            return []
        times = 2 if self.subject.scope.quick else 4
        prompts = [
            Prompt(case.given, (self.subject.scope.seed, i, turn))
            for i, case in enumerate(self.cases)
            for turn in range(times)
        ]
        made = make(self.subject.run, (str(self.roles.words),), prompts, USUAL, self.subject.advance)
        texts = [(k // times, str(t[str(self.roles.words)])) for k, t in enumerate(made) if t is not None]
        told = [(i, self.wording.facts(text)) for i, text in texts]
        rows: list[Row] = []
        for field in FIELDS:
            stated = [
                (i, facts[field]) for i, facts in told if field in facts and field in self.cases[i].facts
            ]
            rows += self._row(f"{field}, written", field, stated)
        if told:
            shares = [f"{field} {np.mean([field in facts for _, facts in told]):.2f}" for field in FIELDS]
            self.notes.append(f"share of written words that state {', '.join(shares)}")
        return [*rows, *self._bleu(texts)]

    def _bleu(self, texts: Sequence[tuple[int, str]]) -> list[Row]:
        known = [(i, text) for i, text in texts if self.cases[i].captions]
        if not known:
            return []
        others = self._others()
        words = [text for _, text in known]
        try:
            figures = {MODEL: Figure(bleu(words, [self.cases[i].captions for i, _ in known]))}
            if len(self.cases) > 1:
                strangers = [self.cases[others[i]].captions or ("",) for i, _ in known]
                figures[STRANGER] = Figure(bleu(words, strangers))
        except ImportError:
            self.notes.append(f"BLEU is left out: it needs sacrebleu ({NEEDED})")
            return []
        return [Row("BLEU of written words", "0 to 100", HIGHER, len(known), figures)]

    # Tags

    def tagged(self) -> list[Row]:
        """A row for each field of the likeliest tags."""
        tags = self.roles.tags
        if tags is None or not self._told(tags):
            self.notes.append("no arrangement of the recipe has tags after music")
            return []
        prompts = [Prompt(case.given, (self.subject.scope.seed, i)) for i, case in enumerate(self.cases)]
        made = make(self.subject.run, (tags,), prompts, Sampling(temperature=0.0), self.subject.advance)
        told = [(i, spelt(piece[tags])) for i, piece in enumerate(made) if piece is not None]
        rows: list[Row] = []
        for field in FIELDS:
            there = [
                (i, facts[field]) for i, facts in told if field in facts and field in self.cases[i].facts
            ]
            rows += self._row(f"{field}, tags", field, there)
        return rows

    # What counts

    def _others(self) -> list[int]:
        return derange(len(self.cases), self.subject.scope.seed).tolist()  # type: ignore[no-any-return]

    def _row(self, name: str, field: str, answers: Sequence[tuple[int, str]]) -> list[Row]:
        """How many answers are right, beside the floors; none where there is no answer."""
        if not answers:
            return []
        there = sorted({i for i, _ in answers})
        given = {i: [answer for j, answer in answers if j == i] for i in there}
        floors: dict[str, Mapping[int, Sequence[str | None]]] = {MODEL: given}
        floors[MAJORITY] = {i: [self.majority[field]] * len(given[i]) for i in there}
        if field == "key":
            floors[FINDER] = {i: [self.cases[i].finder] * len(given[i]) for i in there}
        found = {
            column: [float(sum(answer == self.cases[i].facts[field] for answer in said[i])) for i in there]
            for column, said in floors.items()
        }
        if len(self.cases) > 1:
            other = {i: self.cases[j].facts.get(field) for i, j in enumerate(self._others())}
            found[STRANGER] = [float(sum(answer == other[i] for answer in given[i])) for i in there]
        units = [float(len(given[i])) for i in there]
        sources = [self.cases[i].piece.source for i in there]
        return [ratio_row(name, "share of answers", HIGHER, found, units, sources)]


@torch.inference_mode()
def phrase_scores(run: Run, words: str, prompt: Stream, said: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) log probability, nats, of K phrases (local ids of words, and then `<end>`) behind a prompt that
    ends with the tag of words.

    The softmax runs over words and `<end>` alone, as in `likelihood`. The prompt is read once.
    """
    net, place = run.net, run.vocabulary.range(words)
    device = net.embedding.weight.device
    longest = max(map(len, said))
    ids = np.full((len(said), longest + 1), END, dtype=np.int64)  # what comes behind `<end>` is not counted
    for row, phrase in enumerate(said):
        ids[row, : len(phrase)] = phrase + place.first
    cache = net.new_cache(1, len(prompt.ids) + longest)
    begun = net(
        _on(prompt.ids.astype(np.int64), device)[None], cache=cache, clock=_on(prompt.clock, device)[None]
    )
    cache = cache.take(torch.zeros(len(said), dtype=torch.long, device=device))
    answers = torch.from_numpy(ids).to(device)
    rest = net(answers[:, :-1], cache=cache, clock=torch.zeros(answers[:, :-1].shape, device=device))
    hidden = torch.cat([begun[:, -1:].expand(len(said), -1, -1), rest], dim=1)  # (K, T, D)
    allowed = _on(np.array([END, *range(place.first, place.stop)]), device)
    logits = net.logits(hidden)[..., allowed].double().log_softmax(-1)
    column = torch.where(answers == END, 0, answers - place.first + 1)
    found = logits.gather(-1, column[..., None])[..., 0].cpu().numpy()
    return np.array([row[: len(phrase) + 1].sum() for row, phrase in zip(found, said, strict=True)])


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
