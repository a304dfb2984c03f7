"""Gemma's terms go with whatever gemb makes of a model under them, and with nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import gguf
import pytest

from fake_backend import Gemb
from gemb.models.card import NOTICE, history_in, history_of, reaching, terms
from gemb.models.checkpoint import open_checkpoint
from gemb.models.from_gguf import unpack
from gemb.models.gguf import open_gguf
from gemb.models.references import bundled

# Section 3.1 of the terms: what who distributes a derivative must include.
SENTENCE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)


@pytest.fixture
def gemma_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder as the hub has it: the card names the licence, no more."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "gemma"))
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n# Card\n")
    return folder


def metadata_of(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def assert_folder_has_all(folder: Path) -> None:
    assert (folder / "GEMMA-NOTICE.txt").read_text().startswith(SENTENCE + "\n")
    assert (folder / "GEMMA-TERMS.txt").read_text() == terms()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: gemma\n---\n")
    assert SENTENCE in card
    assert open_checkpoint(folder).licence() == "gemma"


def assert_file_has_all(path: Path, change: str) -> None:
    said = metadata_of(path)
    assert said["general.license"] == "gemma"
    assert said["general.license.name"] == "Gemma Terms of Use"
    assert said["general.license.link"] == "https://ai.google.dev/gemma/terms"
    assert said["general.license.notice"] == f"{SENTENCE}\n\n{change}"
    assert said["general.license.text"] == terms()


def test_the_notice_is_the_one_that_the_terms_ask_for():
    assert NOTICE == SENTENCE
    assert SENTENCE in terms()
    assert "3.2 Use Restrictions" in terms()


def test_the_bundled_model_has_notice_terms_and_card_beside_it():
    folder = bundled().parent
    assert (folder / "GEMMA-TERMS.txt").read_text() == terms()
    notice = (folder / "GEMMA-NOTICE.txt").read_text()
    assert notice.startswith(SENTENCE + "\n")
    assert "modified version of google/embeddinggemma-300m" in notice
    assert (folder / "mini.md").is_file()


def test_the_bundled_file_alone_tells_its_licence_and_what_was_changed():
    header = open_gguf(bundled()).header.metadata
    change = str(header["general.license.notice"]).removeprefix(f"{SENTENCE}\n\n")
    assert_file_has_all(bundled(), change)
    steps = history_in(change)
    assert steps == change.splitlines(), "each line is a step that a later card takes over"
    assert steps[-1].startswith("Modified from embeddinggemma-300m by `gemb cut`: 22 of 24 layers")


def test_the_notice_and_the_terms_go_through_every_command(gemma_folder: Path, gemb: Gemb):
    def done(*words: object) -> None:
        answer = gemb(*map(str, words))
        assert answer.returncode == 0, answer.stderr

    done("cut", gemma_folder, "-o", "cut", "--keep-layers", "1,2")
    assert_folder_has_all(gemb.folder / "cut")
    done("soup", "./cut", "./cut", "-o", "soup")
    assert_folder_has_all(gemb.folder / "soup")
    done("export-gguf", "soup", "-o", "soup.gguf", "--outtype", "f32")
    card = (gemb.folder / "soup/README.md").read_text()
    (made,) = re.findall("^Average .*", card, re.MULTILINE)
    (cut,) = re.findall("^Before that: (Modified from gemma by `gemb cut`.*)", card, re.MULTILINE)
    change = f"Modified from soup by `gemb export-gguf`.\n{made}\n{cut}"
    assert_file_has_all(gemb.folder / "soup.gguf", change)
    done("quantize", "soup.gguf", "-t", "q8_0", "-o", "q8_0.gguf")
    assert_file_has_all(gemb.folder / "q8_0.gguf", change)
    (gemb.folder / "unpacked").mkdir()
    unpack(open_gguf(gemb.folder / "q8_0.gguf"), gemb.folder / "unpacked")
    assert_folder_has_all(gemb.folder / "unpacked")
    assert history_of(gemb.folder / "unpacked") == [
        "Unpacked by gemb from q8_0.gguf, whose weights are f32, q8_0.",
        *change.splitlines(),
    ]


def test_a_model_of_the_hubs_cache_is_called_by_its_name_there(gemma_folder: Path, gemb: Gemb):
    snapshot = gemb.folder / "hub/models--org--some-model/snapshots" / ("0123456789abcdef" * 2)
    shutil.copytree(gemma_folder, snapshot)
    cut = gemb("cut", str(snapshot), "-o", "a", "--keep-layers", "1,2")
    assert cut.returncode == 0, cut.stderr
    (step,) = history_of(gemb.folder / "a")
    assert step.startswith("Modified from org/some-model@0123456789ab by `gemb cut`: 2 of 3 layers")
    export = gemb("export-gguf", str(snapshot), "-o", "a.gguf", "--outtype", "f32")
    assert export.returncode == 0, export.stderr
    said = metadata_of(gemb.folder / "a.gguf")
    assert said["general.name"] == "some-model"
    assert "\nModified from org/some-model@0123456789ab by" in str(said["general.license.notice"])


def test_the_model_of_a_run_is_called_by_the_runs_name(gemma_folder: Path, gemb: Gemb):
    run = shutil.copytree(gemma_folder, gemb.folder / "runs/smoke/model")
    assert gemb("cut", str(run), "-o", "a", "--keep-layers", "1,2").returncode == 0
    assert history_of(gemb.folder / "a")[0].startswith("Modified from smoke/model by `gemb cut`: ")


def test_a_card_that_names_no_licence_leaves_the_notice_to_say_it(gemma_folder: Path, gemb: Gemb):
    assert gemb("cut", str(gemma_folder), "-o", "a", "--keep-layers", "1,2").returncode == 0
    (gemb.folder / "a" / "README.md").write_text("# My model\n")
    assert gemb("cut", "./a", "-o", "b", "--keep-layers", "0,1").returncode == 0
    assert_folder_has_all(gemb.folder / "b")


def test_a_card_tells_every_change_the_last_first(gemma_folder: Path, gemb: Gemb):
    source = str(gemma_folder)
    for name, layers in (("a", "0,1,2"), ("b", "1,2"), ("c", "0,1")):
        assert gemb("cut", source, "-o", name, "--keep-layers", layers).returncode == 0
        source = f"./{name}"
    lines = (gemb.folder / "c" / "README.md").read_text().splitlines()
    told = [line.partition(" by ")[0] for line in lines if "Modified from" in line]
    assert told == [
        "Modified from b",
        "Before that: Modified from a",
        "Before that: Modified from gemma",
    ]


def test_a_model_under_another_licence_or_none_gets_no_terms(tiny_model: Path, gemb: Gemb):
    folder = Path(shutil.copytree(tiny_model, gemb.folder / "mit"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for source in (folder, tiny_model):
        assert gemb("cut", str(source), "-o", "cut", "--keep-layers", "1,2", "-f").returncode == 0
        assert not list((gemb.folder / "cut").glob("GEMMA*"))
        assert gemb("export-gguf", "./cut", "-o", "a.gguf", "-f").returncode == 0
        said = metadata_of(gemb.folder / "a.gguf")
        expected = {"general.license": "mit"} if source == folder else {}
        assert {key: value for key, value in said.items() if "license" in key} == expected


def test_gemmas_terms_reach_what_is_made_of_several_models():
    assert reaching(["mit", "gemma", ""]) == "gemma"
    assert reaching(["mit", "", "mit"]) == "mit"
    assert reaching(["mit", "apache-2.0"]) == ""
    assert reaching([]) == ""


def test_show_prints_the_card_and_the_terms(gemma_folder: Path, tiny_model: Path, gemb: Gemb):
    shown = gemb("models", "show", "mini").stdout.decode()
    assert "licence       gemma (Gemma Terms of Use: https://ai.google.dev/gemma/terms)\n" in shown
    assert f"              {SENTENCE}\n" in shown
    assert "terms         gemb models show mini --terms\n" in shown
    assert shown.endswith("card          gemb models show mini --card\n")
    assert gemb("models", "show", "mini", "--terms").stdout.decode() == terms()
    card = bundled().with_suffix(".md").read_text()
    assert gemb("models", "show", "mini", "--card").stdout.decode() == card
    assert gemb("models", "show", str(gemma_folder), "--card").stdout.endswith(b"# Card\n")


def test_a_model_without_card_or_gemmas_terms_says_so_in_one_line(tiny_gguf: Path, gemb: Gemb):
    answer = gemb("models", "show", str(tiny_gguf), "--card")
    assert (answer.returncode, answer.stdout) == (4, b"")
    beside = tiny_gguf.with_suffix(".md")
    assert answer.stderr.decode() == (
        f"gemb: {tiny_gguf} has no model card: there is no {beside}\n"
    )
    answer = gemb("models", "show", str(tiny_gguf), "--terms")
    assert (answer.returncode, answer.stdout) == (4, b"")
    assert b"Gemma's terms alone; licence named: none\n" in answer.stderr
    answer = gemb("models", "show", "mini", "--card", "--json")
    assert (answer.returncode, answer.stdout) == (2, b"")
    assert b"--json, --card and --terms: one of them" in answer.stderr


def test_a_student_of_a_gemma_is_under_its_terms(gemma_folder: Path, tiny_model: Path, gemb: Gemb):
    """Distillation is named in section 1.1 (e) of the terms."""
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(8)]
    (gemb.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (gemb.folder / "recipe.yaml").write_text(
        f"""stage: distill
init: {{from: {tiny_model}}}
data: [{{path: pairs.jsonl}}]
loss: {{matryoshka: [96], distill: {{teacher: {gemma_folder}}}}}
batch: {{pairs: 4, max_tokens: 64}}
run: {{steps: 1}}
"""
    )
    answer = gemb("train", "recipe.yaml", "-o", "run", "-q")
    assert answer.returncode == 0, answer.stderr
    assert_folder_has_all(gemb.folder / "run" / "model")
