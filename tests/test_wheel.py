"""The wheel and the source archive: what they hold, what they do not, and that they suffice."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from gemb import __version__

ROOT = Path(__file__).parents[1]
WEIGHTS = {".gguf", ".safetensors", ".bin", ".pt", ".npy", ".npz"}
BUNDLED = [
    *(f"gemb/data/draft/{part}model.safetensors" for part in ("2_Dense/", "3_Dense/", "")),
    "gemb/data/mini.gguf",
]
INFO = f"gemb-{__version__}.dist-info"


def files_of(folder: Path) -> set[str]:
    """Every file below a folder of the checkout, by its path there, caches left out."""
    every = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in every if path.suffix != ".pyc"}


def files_named(prefix: str, folder: Path) -> set[str]:
    return {f"{prefix}/{name}" for name in files_of(folder)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked far from the checkout, and nothing of the checkout on the path."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *words: str, **settings: str) -> str:
    """What the unpacked wheel's gemb prints, run in its folder with an empty home."""
    settings |= {"PYTHONPATH": str(installed), "HOME": str(installed), "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "gemb", *words],
        cwd=installed,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_wheel_holds_a_man_page_for_each_command(wheel, names, tmp_path):
    pages = {Path(name).name for name in names if "/share/man/man1/" in name}
    assert {"gemb.1", "gemb-embed.1", "gemb-index-build.1", "gemb-models-pull.1"} <= pages
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in names if name.endswith("/gemb-embed.1"))
        text = archive.read(name).decode()
    assert text.startswith(".TH GEMB-EMBED 1 ")
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OUTPUT"):
        assert f"\n.SH {heading}\n" in text
    assert "\\-\\-dtype" in text  # a hyphen as it is typed


def test_the_wheel_holds_the_four_packages_and_the_recipes_whole(names):
    packages = files_named("gemb", ROOT / "gemb") | files_named("gemb/recipes", ROOT / "recipes")
    for backend in ("gemb_torch", "gemb_llamacpp", "gemb_onnx", "gemb_static"):
        packages |= files_named(backend, ROOT / "backends" / backend)
    beside = (f"{INFO}/", f"gemb-{__version__}.data/")
    assert {name for name in names if not name.startswith(beside)} == packages
    assert {"gemb/data/mini.gguf", "gemb/data/GEMMA-TERMS.txt", "gemb/py.typed"} <= packages


def test_the_wheel_holds_the_shells_completions_where_shells_look(names):
    share = f"gemb-{__version__}.data/data/share"
    pages = f"{share}/man/man1/"
    assert {name for name in names if name.startswith(share) and not name.startswith(pages)} == {
        f"{share}/bash-completion/completions/gemb",
        f"{share}/zsh/site-functions/_gemb",
        f"{share}/fish/vendor_completions.d/gemb.fish",
    }


def test_the_wheel_holds_no_tests_and_no_weights_but_minis_and_its_drafts(names):
    assert not [name for name in names if "test" in Path(name).name or "/tests/" in name]
    weights = [name for name in names if Path(name).suffix in WEIGHTS]
    assert sorted(weights) == BUNDLED


def test_the_wheel_is_under_100_mb(wheel):
    # What package indexes take at most without being asked.
    assert wheel.stat().st_size < 100e6


def test_the_wheel_says_what_it_is_and_under_which_licences(metadata, names):
    assert metadata["Name"] == "gemb"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().startswith("# gemb\n")
    licences = metadata.get_all("License-File")
    assert "Gemma" in metadata["License-Expression"]
    assert {"LICENSE", "gemb/data/GEMMA-NOTICE.txt", "gemb/data/GEMMA-TERMS.txt"} <= set(licences)
    notes = {f"gemb/data/{name}/README.md" for name in ("sample", "eval/tiny", "draft")}
    assert notes <= set(licences), "WordNet's licence goes with WordNet's glosses"
    assert {f"{INFO}/licenses/{name}" for name in licences} <= names


def test_every_licence_named_is_one_that_the_expression_may_name(metadata):
    from packaging.licenses import canonicalize_license_expression

    given = metadata["License-Expression"]
    assert canonicalize_license_expression(given) == given


def test_the_unpacked_wheel_has_recipes_and_a_model_of_its_own(installed):
    where = run(installed, "models", "path", "mini").strip()
    assert where == str(installed / "gemb" / "data" / "mini.gguf")
    listed = {line.split()[0] for line in run(installed, "recipes", "ls").splitlines()}
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= listed
    assert "sample" in run(installed, "recipes", "show", "smoke")
    assert run(installed, "embed", "-e", "hello", "--dim", "128").count(",") >= 127


def test_the_source_archive_holds_what_builds_tests_and_tells(tmp_path):
    from hatchling.builders.sdist import SdistBuilder

    builder = SdistBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO"}
    for folder in ("gemb", "backends", "recipes", "completions", "tests"):
        wanted |= files_named(folder, ROOT / folder)
    assert wanted <= names
    folders = {"gemb", "backends", "recipes", "completions", "pictures", "tests", ".ci"}
    assert {name.partition("/")[0] for name in names - wanted} <= {*folders, ".gitignore"}
    assert builder.config.only_include, "what a user made beside it would be in it, too"
    assert Path(path).stat().st_size < 100e6
    # What version 0.1.0 made, of random weights and of vectors, is for the tests.
    shipped = [name for name in names if not name.startswith("tests/data/")]
    weights = [name for name in shipped if Path(name).suffix in WEIGHTS]
    assert sorted(weights) == BUNDLED
