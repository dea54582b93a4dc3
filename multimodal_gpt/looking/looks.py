"""Which earlier tokens a model drew on when it said one: shares of its attention, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.generation.session import Run
from multimodal_gpt.looking.attention_weights import WAYS, attention_weights
from multimodal_gpt.looking.words import Words, stream_words
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.vocabulary import Encoded, Vocabulary


@dataclass(frozen=True)
class Look:
    """One token that the model saw, and the share of the attention that it got."""

    token: int
    modality: str
    time: float | None
    word: str
    share: float


def looks_before(
    run: Run, stream: Stream, segments: Mapping[str, Encoded], token: int, way: str
) -> tuple[Look, ...]:
    """From where the model drew when it had to say `token` of a stream: it stood at the token before.

    `way` is one of `attention_weights.WAYS`; shares sum up to 1. Raises UserError for another.
    """
    if way not in WAYS:
        raise UserError(f"unknown way '{way}' to sum up attention", "attention", nearest(way, WAYS))
    vocabulary = run.vocabulary
    device = run.net.embedding.weight.device
    ids = torch.from_numpy(stream.ids[:token].astype(np.int64)).to(device)
    clock = torch.from_numpy(stream.clock[:token]).to(device)
    shares = WAYS[way](attention_weights(run.net, ids, clock))[-1].tolist()
    known = {name: Words(vocabulary.tokenizer(name)).of_segment(s) for name, s in segments.items()}
    words = stream_words(vocabulary, stream.ids, known)
    parts = zip(shares, words, _homes(vocabulary, stream, segments), strict=False)
    return tuple(Look(i, home, time, word, share) for i, (share, word, (home, time)) in enumerate(parts))


def _homes(
    vocabulary: Vocabulary, stream: Stream, segments: Mapping[str, Encoded]
) -> Iterator[tuple[str, float | None]]:
    """The modality and the time of each token of a stream; "" and None for what only frames it."""
    for token, clock, owner in zip(
        stream.ids.tolist(), stream.clock.tolist(), vocabulary.owner(stream.ids).tolist(), strict=True
    ):
        name = "" if owner < 0 else vocabulary.names[owner]
        framing = not name or token == vocabulary.ranges[name].tag
        timed = not framing and segments[name].clock is not None
        yield ("" if framing else name), (clock if timed else None)


def largest(looks: Sequence[Look], count: int) -> list[Look]:
    """The looks with the largest shares; neighbours that say the same (a word of two tokens) are one."""
    merged: list[Look] = []
    for look in looks:
        last = merged[-1] if merged else None
        if last and (last.modality, last.time, last.word) == (look.modality, look.time, look.word):
            merged[-1] = Look(last.token, *_place(look), last.share + look.share)
        else:
            merged.append(look)
    return sorted(merged, key=lambda look: (-look.share, look.token))[:count]


def _place(look: Look) -> tuple[str, float | None, str]:
    return look.modality, look.time, look.word
