"""A trained run as a folder that another library opens without any code of ours.

transformers: our block is that of Apertus under other names, with GELU for its activation, so the weights are
renamed and nothing is computed. What that shape cannot hold is refused, never dropped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.files import write_text
from multimodal_gpt.stream.vocabulary import DOC, EOD, PAD, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from multimodal_gpt.model.gpt import GPT, GPTConfig

FORMATS = ("transformers",)
WEIGHTS = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
BLOCK = {
    "attention_norm": "attention_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "feedforward_layernorm",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
"""Our names of all weights, and of those of a block, -> Apertus's."""
HELD = {"vocabulary_size", "depth", "width", "heads", "kv_heads", "mlp_hidden", "context", "rotary_base"}
UNUSED = {"dropout", "clock"}
"""Of a GPTConfig: what Apertus's config says too; what matters only in training, or is looked at apart."""
NO_PLACE = "which Apertus, its shape in transformers, can't hold"


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, its files by name, and the number of weights."""

    folder: Path
    files: tuple[str, ...]
    parameters: int


def export(
    run: Path,
    to: str,
    out: Path | None = None,
    *,
    plugins: Mapping[str, str] | None = None,
    force: bool = False,
) -> Exported:
    """Write a trained run for another library; `RUN/transformers` where `out` is None.

    `plugins`: modality -> plugin file that the caller trusts. Raises UserError where the run is damaged,
    holds what that library has no place for, or files would be overwritten without `force`.
    """
    if to not in FORMATS:
        raise UserError(f"can't export to '{to}'", "--to", nearest(to, FORMATS))
    folder = out or run / to
    if folder.exists() and not (folder.is_dir() and (force or not any(folder.iterdir()))):
        raise UserError("is there already", folder, "name another --out, or add --force")
    from multimodal_gpt.training.checkpoint import load_weights

    loaded = load_weights(run, plugins=plugins)
    weights = _renamed(loaded.net, run)
    files = _write(folder, loaded.net.config, weights, loaded.vocabulary, _card(run, loaded.vocabulary))
    return Exported(folder, files, loaded.net.parameter_count)


def _renamed(net: GPT, run: Path) -> dict[str, Tensor]:
    """The weights under Apertus's names. Raises UserError where it has other ones."""
    _check_config(net.config, run)
    weights, names = net.state_dict(), apertus_names(net.config.depth)
    strange = sorted(set(weights) ^ set(names))
    if strange:
        state = "holds" if strange[0] in weights else "lacks"
        what = f"the model {state} {strange[0]}, {NO_PLACE}"
        raise UserError(what, run, "export a model of the usual shape")
    return {new: weights[name].float().contiguous() for name, new in names.items()}


def apertus_names(depth: int) -> dict[str, str]:
    """Our names of the weights -> those of Apertus: a rename is all there is to it."""
    blocks = {
        f"blocks.{number}.{ours}.weight": f"model.layers.{number}.{theirs}.weight"
        for number in range(depth)
        for ours, theirs in BLOCK.items()
    }
    return {**WEIGHTS, **blocks}


def _check_config(config: GPTConfig, run: Path) -> None:
    if config.clock_angles:
        what = f"model.clock is {config.clock:g}: rotary angles turn with musical time, {NO_PLACE}"
        raise UserError(what, run, "train with model.clock=0")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in HELD | UNUSED and value != field.default:
            raise UserError(f"{field.name} is {value}, {NO_PLACE}", run, f"train with {field.default}")


def apertus_config(config: GPTConfig) -> dict[str, Any]:
    """`config.json`, the same shape in Apertus's words, those of transformers 4 and 5."""
    rotary = {"rope_theta": config.rotary_base}
    return {
        "architectures": ["ApertusForCausalLM"],
        "model_type": "apertus",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context,
        **rotary,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", **rotary},
        "rms_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        **_ids(),
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _ids() -> dict[str, int]:
    """What begins, ends and fills up a document."""
    return {"bos_token_id": DOC, "eos_token_id": EOD, "pad_token_id": PAD}


def _write(
    folder: Path, config: GPTConfig, weights: Mapping[str, Tensor], vocabulary: Vocabulary, card: str
) -> tuple[str, ...]:
    """All files, beside their place first; `config.json`, which makes it a model, comes last."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".partial-") as name:
            new = Path(name)
            vocabulary.save(new)
            save_file(dict(weights), new / "model.safetensors", metadata={"format": "pt"})
            write_text(new / "README.md", card)
            _write_json(new / "generation_config.json", {"do_sample": True, **_ids()})
            _write_json(new / "config.json", apertus_config(config))
            files = sorted((p.name for p in new.iterdir()), key=lambda n: (n == "config.json", n))
            for file in files:
                shutil.move(new / file, folder / file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't be written: {error}", folder, "make room, or name another --out") from error
    return tuple(files)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def _card(run: Path, vocabulary: Vocabulary) -> str:
    """README.md: what the folder is, and how files become ids."""
    first = vocabulary.names[0]
    ranges = [f"| `{r.name}` | {r.tag} | {r.first} to {r.stop - 1} |" for r in vocabulary.ranges.values()]
    plugins = {m.name: m.plugin for m in vocabulary.modalities if m.is_file}
    trusted = f", {plugins!r}" if plugins else ""
    return CARD.format(
        run=run.name, ranges="\n".join(ranges), first=first, trusted=trusted, size=vocabulary.size
    )


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---
# {run}

A model trained with multimodal_gpt, in the shape of Apertus: `AutoModelForCausalLM` opens it, no code of ours
is needed (transformers 4.56 or later). It has no tokenizer of transformers: its ids are words, notes, chords
and whatever else it was trained on, and `vocabulary.json` says what each of them means.

| modality | tag | ids |
|---|---|---|
{ranges}

A document is `<doc>` (1), then for each modality its tag, its ids and `<end>` (3), then `<eod>` (2); `<pad>`
is 0. Rows of the table from {size} on are padding. Our package turns files and words into ids and back:

```python
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from multimodal_gpt import Vocabulary
from multimodal_gpt.stream.arrangement import Layout, to_stream

folder = Path(".")
vocabulary = Vocabulary.load(folder{trusted})
model = AutoModelForCausalLM.from_pretrained(folder)

content = vocabulary.tokenizer("{first}").parse("...")  # words, or the path of a file
segments = {{"{first}": vocabulary.encode("{first}", content)}}
stream = to_stream(vocabulary, segments, Layout((("{first}",),)))
ids = torch.from_numpy(stream.ids).long()[None]
logits = model(ids).logits
ids = model.generate(ids[:, :-1], max_new_tokens=64)
print(ids[0].tolist())
```

transformers knows nothing of the grammars that keep `mmgpt generate` legal: what it samples may be no piece.
"""
