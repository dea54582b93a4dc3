"""Tokens that are made per second, against nanoGPT, LitGPT and transformers; all in one run, taking turns.

    python benchmarks/generate.py [--size small|base] [--batch 1 16] [--tokens 512] [--rounds 3] [--only NAME]
    pip install --target PEERS --no-deps litgpt transformers accelerate psutil jsonargparse
    PYTHONPATH=PEERS python benchmarks/generate.py           # with peers that the environment lacks

Contenders, all float32 with random weights, one thread, and --tokens new ids after a prompt of one:

    "ours"                  `generation.engine.Engine`: chords and melody take turns, every id legal
    "ours, one alone"       a melody by itself
    "ours, anything legal"  as many columns, any of which may come: what the grammar costs
    "ours, network alone"   the network fed with fixed ids: what everything else costs
    "ours, clock"           "ours" with half of the angles on the clock (model.clock)
    "ours, as asked for"    the same at temperature 0.9, top-p 0.95, as `mmgpt generate` has it
    "nanogpt"               GPT-2's shape; reads everything again for each id. Timed at 16 lengths, scaled
    "lean"                  the same network, a static cache, nothing but what it takes: our reference
    "litgpt"                litgpt.GPT, shaped like Llama, by its generate_fn, or its batched_generate_fn
    "transformers"          LlamaForCausalLM.generate as it comes, but for sampling at temperature 1

Peers have the same table, depth, width and heads as ours, and MLPs as wide as make their parameters as many,
within 2 %. They draw at temperature 1 from all ids, as ours does from those that are legal. Our table is made
so that nothing ends before its last id. A contender that can't run is skipped, with the reason.

A turn is one batch, while nobody else computes; the first isn't counted, and each round begins with another
contender. Prints a JSON line per contender: medians over rounds of tokens per CPU second and per second, and
`ratio` to transformers in the same round, by CPU seconds, with the least and the greatest. Then a line with
the ratio of ours to the best peer, and which share of our time the grammar takes, and all but the network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train import SIZES, against, as_many, count  # benchmarks/train.py

from multimodal_gpt.generation.engine import Engine, Row
from multimodal_gpt.generation.sampling import Sampling
from multimodal_gpt.generation.target import Member, Target, members_of
from multimodal_gpt.model.decoding import Decoder
from multimodal_gpt.model.gpt import GPT, GPTConfig
from multimodal_gpt.stream.arrangement import Stream
from multimodal_gpt.stream.grammar import free_grammar
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import DOC, END, Vocabulary

MODALITIES = [
    Modality("text", "text", {"encoding": "bytes"}),
    Modality("chords", "chords"),
    Modality("melody", "melody"),
]
TOGETHER, ALONE, ANY = ("chords", "melody"), ("melody",), ("any",)
LENGTHS = 16  # of what nanogpt reads again, evenly spread
PEERS = ("nanogpt", "litgpt", "transformers")

Contender = Callable[[int], float]
"""Makes a batch from a seed; gives how many batches that was worth."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    depth: int
    width: int
    heads: int
    batch: int
    tokens: int
    vocabulary: int
    parameters: int = 0

    @property
    def places(self) -> int:
        """Tokens of a row, the prompt, tags and END among them."""
        return self.tokens + 8


def our_net(s: Setting, clock: float = 0.0) -> GPT:
    """Random weights under which END never comes by itself: every hidden state leans to one side."""
    net = GPT(GPTConfig(s.vocabulary, s.depth, s.width, s.heads, s.heads, 4 * s.width, s.places, clock=clock))
    with torch.no_grad():
        net.embedding.weight[:, 0] = 3
        net.embedding.weight[END] = 0
        net.embedding.weight[END, 0] = -1000
    return net.eval().requires_grad_(False)


def our_members() -> dict[str, Member]:
    """The members of the vocabulary, and one with as many ids as those that take turns, all of them legal."""
    members = members_of(Vocabulary(MODALITIES))
    first = members[TOGETHER[0]]
    size = sum(members[name].grammar.size for name in TOGETHER)
    return members | {ANY[0]: Member(ANY[0], first.tag, first.first, free_grammar(size), None)}


def ours(
    s: Setting,
    order: tuple[str, ...] = TOGETHER,
    *,
    clock: float = 0.0,
    how: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Contender:
    engine = Engine(our_net(s, clock), our_members())
    prompt = Stream(np.array([DOC]), np.zeros(1, dtype=np.float32))
    known = 2 if len(order) > 1 else 1  # ids of a part that are not made: <mix> and a tag

    def make(seed: int) -> float:
        rows = [Row(prompt, Target(order), s.tokens + known, (seed, i)) for i in range(s.batch)]
        lengths = [len(made.ids) - known for made in engine.generate(rows, how)]
        if min(lengths) < 0.9 * s.tokens:
            raise ValueError(f"rows of {lengths} ids were made")
        return sum(lengths) / (s.tokens * s.batch)  # the last ids of all may not fill the budget

    return make


def network_alone(s: Setting) -> Contender:
    net = our_net(s)

    @torch.inference_mode()
    def make(seed: int) -> float:
        decoder, cache = Decoder(net), net.new_cache(s.batch, s.places)
        ids = torch.full((s.batch,), DOC)
        for _ in range(s.tokens):
            decoder.step(ids, cache)
        return 1.0

    return make


class Block(nn.Module):
    """Of GPT-2, as nanoGPT writes it; with places for keys and values, if wanted."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.store = heads, None
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, place: int) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.store is not None:
            self.store[0][:, :, place : place + 1] = k
            self.store[1][:, :, place : place + 1] = v
            k, v = (kept[:, :, : place + 1] for kept in self.store)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.store is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT2(nn.Module):
    """As nanoGPT writes it: ids (B, T) that stand at `place` and after -> logits (B, V) of what follows."""

    def __init__(self, s: Setting, hidden: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(s.vocabulary, s.width), nn.Embedding(s.places, s.width)
        self.blocks = nn.ModuleList(Block(s.width, s.heads, hidden) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width, bias=False)

    def forward(self, ids: Tensor, place: int = 0) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(place, place + ids.shape[1]))
        for block in self.blocks:
            x = block(x, place)
        return F.linear(self.norm(x[:, -1]), self.table.weight)


def drawn(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1)


def nanogpt(s: Setting) -> Contender:
    net = as_many(lambda hidden: GPT2(s, hidden), s).eval()
    lengths = range(s.tokens // LENGTHS // 2, s.tokens, s.tokens // LENGTHS)

    @torch.no_grad()
    def make(seed: int) -> float:
        for length in lengths:
            ids = torch.ones(s.batch, length, dtype=torch.long)
            ids = torch.cat([ids, drawn(net(ids))], dim=1)
        return len(lengths) / s.tokens

    return make


def lean(s: Setting) -> Contender:
    net = as_many(lambda hidden: GPT2(s, hidden), s).eval()

    @torch.inference_mode()
    def make(seed: int) -> float:
        for block in net.blocks:
            block.store = torch.zeros(2, s.batch, s.heads, s.places, s.width // s.heads)
        made = torch.ones(s.batch, 1 + s.tokens, dtype=torch.long)
        for place in range(s.tokens):
            made[:, place + 1 :][:, :1] = drawn(net(made[:, place : place + 1], place))
        return 1.0

    return make


def litgpt(s: Setting) -> Contender:
    from litgpt import GPT as LitGPT
    from litgpt import Config
    from litgpt.generate.base import batched_generate_fn, generate_fn

    sizes = {"n_layer": s.depth, "n_embd": s.width, "n_head": s.heads, "block_size": s.places}
    table = {"vocab_size": s.vocabulary, "padded_vocab_size": s.vocabulary}
    plain = {"bias": False, "parallel_residual": False, "rotary_percentage": 1.0}
    kinds = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}

    def sized(hidden: int) -> nn.Module:
        net = LitGPT(Config(name="llama", intermediate_size=hidden, **sizes, **table, **plain, **kinds))
        net.transformer.wte.weight = net.lm_head.weight
        return net

    net = as_many(sized, s).eval()
    net.set_kv_cache(batch_size=s.batch, max_seq_length=s.tokens + 1)
    whole = {"max_returned_tokens": s.tokens + 1, "include_prompt": False, "include_eos": False}

    def make(seed: int) -> float:
        if s.batch == 1:
            steps = generate_fn(net, torch.ones(1, dtype=torch.long), temperature=1.0, **whole)
        else:
            prompts = torch.ones(s.batch, 1, dtype=torch.long)
            steps = batched_generate_fn(net, prompts, sample_args={"temperature": 1.0}, **whole)
        found = sum(1 for _ in steps)
        if found != s.tokens:
            raise ValueError(f"{found} steps")
        return 1.0

    return make


def transformers(s: Setting) -> Contender:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": s.width, "num_hidden_layers": s.depth, "num_attention_heads": s.heads}
    table = {"vocab_size": s.vocabulary, "max_position_embeddings": s.places, "tie_word_embeddings": True}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    net = as_many(lambda hidden: LlamaForCausalLM(LlamaConfig(intermediate_size=hidden, **shape, **table)), s)
    net.eval().generation_config.update(**ends, do_sample=True, top_k=0, temperature=1.0)
    prompts = torch.ones(s.batch, 1, dtype=torch.long)

    def make(seed: int) -> float:
        made = net.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=s.tokens)
        if made.shape != (s.batch, 1 + s.tokens):
            raise ValueError(f"{tuple(made.shape)} ids were made")
        return 1.0

    return make


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "ours": ours,
    "ours, one alone": lambda s: ours(s, ALONE),
    "ours, anything legal": lambda s: ours(s, ANY),
    "ours, network alone": network_alone,
    "ours, clock": lambda s: ours(s, clock=0.5),
    "ours, as asked for": lambda s: ours(s, clock=0.5, how=Sampling(0.9, top_p=0.95)),
    "nanogpt": nanogpt,
    "lean": lean,
    "litgpt": litgpt,
    "transformers": transformers,
}


@dataclass(frozen=True)
class Turn:
    """Seconds that a whole batch takes."""

    cpu: float
    wall: float


def take_turn(make: Contender, seed: int) -> Turn:
    cpu, wall = time.process_time(), time.perf_counter()
    share = make(seed)
    return Turn((time.process_time() - cpu) / share, (time.perf_counter() - wall) / share)


def take_turns(setting: Setting, names: list[str], rounds: int) -> dict[str, list[Turn] | str]:
    """What each contender took in each counted turn, or why it did not run."""
    told: dict[str, list[Turn] | str] = {}
    makers = {}
    for name in names:
        torch.manual_seed(1)
        try:
            makers[name] = CONTENDERS[name](setting)
            take_turn(makers[name], 0)
            told[name] = []
        except Exception as error:  # whatever a peer raises, the others go on
            told[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    going = [name for name in names if not isinstance(told[name], str)]
    for number in range(rounds):
        going = [*going[1:], going[0]]
        for name in going:
            told[name].append(take_turn(makers[name], 1 + number))
    return told


def report(setting: Setting, told: dict[str, list[Turn] | str]) -> None:
    made = setting.tokens * setting.batch
    ran = {name: turns for name, turns in told.items() if not isinstance(turns, str)}
    speeds = {name: [made / t.cpu for t in turns] for name, turns in ran.items()}
    for name, turns in told.items():
        line: dict[str, Any] = {"contender": name, "batch": setting.batch}
        if isinstance(turns, str):
            print(json.dumps({**line, "skipped": turns}), flush=True)
            continue
        line["tokens_per_cpu_second"] = round(statistics.median(speeds[name]))
        line["tokens_per_second"] = round(statistics.median(made / t.wall for t in turns))
        if "transformers" in speeds:
            line |= against(speeds[name], speeds["transformers"])
        print(json.dumps(line), flush=True)
    print(json.dumps(summary(setting, speeds)), flush=True)


def summary(setting: Setting, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Ours against the best peer, and the shares of our time."""
    line: dict[str, Any] = {"batch": setting.batch, "parameters": setting.parameters, "ratio_of": "ours"}
    peers = {name: statistics.median(speeds[name]) for name in PEERS if name in speeds}
    if "ours" in speeds and peers:
        best = max(peers, key=lambda peer: peers[peer])
        line |= {"to": best, **against(speeds["ours"], speeds[best])}
    for key, name in (("grammar", "ours, anything legal"), ("all_but_the_network", "ours, network alone")):
        if "ours" in speeds and name in speeds:
            line[f"share_{key}"] = round(1 - against(speeds["ours"], speeds[name])["ratio"], 3)
    return line


def main() -> int:
    """Run all contenders; the exit code is 1 where one of ours did not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="1.4 M or 11 M parameters")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="rows at once: 1 16 if absent")
    parser.add_argument("--tokens", type=int, default=512, help="new ids per row, 512 if absent")
    parser.add_argument("--rounds", type=int, default=3, help="3 if absent")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders, all if absent")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only or list(CONTENDERS)
    shape = dict(zip(("depth", "width", "heads"), SIZES[options.size], strict=True))
    size = Vocabulary(MODALITIES).table_size
    failed = False
    for batch in options.batch:
        setting = Setting(**shape, batch=batch, tokens=options.tokens, vocabulary=size)
        setting = replace(setting, parameters=count(our_net(setting)))
        report(setting, told := take_turns(setting, names, options.rounds))
        failed |= any(isinstance(turns, str) for name, turns in told.items() if name.startswith("ours"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
