"""The worked example: a modality in one file outside the package."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe.load import load_recipe, modalities
from multimodal_gpt.stream.plugins import Modality, build
from multimodal_gpt.testing import check_tokenizer

FOLDER = Path(__file__).parent.parent / "examples" / "dna"
PLUGIN = str(FOLDER / "dna.py")
BASES = build(Modality("dna", PLUGIN))
CODONS = build(Modality("dna", PLUGIN, {"k": 3}))


@given(st.text("ACGTN", min_size=1), st.sampled_from([BASES, CODONS]))
def test_bases_come_back(bases, tokenizer):
    ids = tokenizer.encode(bases)
    assert tokenizer.decode(ids) == bases
    assert tokenizer.units(bases) == len(bases)


@given(st.lists(st.integers(0, 68), min_size=1))
def test_any_ids_decode(ids):
    bases = CODONS.decode(np.array(ids))
    assert CODONS.decode(CODONS.encode(bases)) == bases


def test_codons_and_what_is_left():
    assert (BASES.size, CODONS.size) == (5, 69)
    assert len(CODONS.encode("ATGNCCCA")) == 4


@pytest.mark.parametrize("k", [1, 3])
def test_keeps_the_contract(k):
    assert "spawn" in check_tokenizer(PLUGIN, options={"k": k}, samples=["ACGTNN", "acguy\nacg"]).passed


def test_reads_every_record():
    items = list(CODONS.read(FOLDER / "genes.fasta"))
    assert len({i.key for i in items}) == len(items) == 48
    assert {i.metadata["description"] for i in items} == {"gc-rich gene", "at-rich gene", "tandem repeat"}
    gc = {i.metadata["description"]: CODONS.describe(i.content)["gc"] for i in items}
    assert gc["gc-rich gene"] > 0.7
    assert gc["at-rich gene"] < 0.3


def test_writes_one_record_after_another(tmp_path):
    path = BASES.write("ACGT" * 20, tmp_path / "x.fasta", note="seed\n1")
    BASES.write("TTT", path, append=True)
    assert path.read_text().splitlines()[::3] == [">generated1 seed 1", ">generated2"]
    assert [i.content for i in BASES.read(path)] == ["ACGT" * 20, "TTT"]
    assert BASES.parse(str(path)) == "ACGT" * 20


@pytest.mark.parametrize("typed", ["", "hello", "none.fasta"])
def test_what_is_no_dna_is_named(typed):
    with pytest.raises(UserError, match=r"is not DNA .write bases as A, C, G, T or N"):
        BASES.parse(typed)


def test_wrong_k_is_named():
    with pytest.raises(UserError, match=r"tokenizers\.dna: k is 9 .1 to 6 bases per token"):
        build(Modality("dna", PLUGIN, {"k": 9}))


def test_the_readme_makes_the_data():
    code = re.search(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[1], {})
    assert printed.getvalue() == (FOLDER / "genes.fasta").read_text()


def test_the_recipe_names_the_plugin_and_the_data():
    recipe = load_recipe(FOLDER / "dna.yaml")
    assert [Path(f).name for f in recipe.data.folders] == ["genes.fasta"]
    dna = {m.name: m for m in modalities(recipe)}["dna"]
    assert build(dna).size == CODONS.size


def test_the_plugin_is_short():
    assert len(Path(PLUGIN).read_text().splitlines()) < 100
