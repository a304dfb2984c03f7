"""What is installed, beside what importlib.metadata says of it."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata

import pytest

from gemb.io.packages import entry_points, version


def test_versions_are_those_of_importlib():
    installed = {dist.metadata["Name"] for dist in metadata.distributions()}
    assert len(installed) > 20
    assert {name: version(name) for name in installed} == {
        name: metadata.version(name) for name in installed
    }


def test_a_package_that_is_not_installed_has_no_version():
    assert version("no-such-package") is None


@pytest.mark.parametrize("group", ["console_scripts", "gemb.backends", "pytest11", "nothing"])
def test_entry_points_are_those_of_importlib(group):
    entries = metadata.entry_points(group=group)
    expected = {(entry.name, entry.value.partition(" [")[0]) for entry in entries}
    assert {(entry.name, entry.target) for entry in entry_points(group)} == expected


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Write packages into two folders of the path, the first of which wins."""
    for place, number in (("first", 1), ("second", 2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "odd_one.py").write_text(f"class Kind:\n    number = {number}\n")
        info = tmp_path / place / f"Odd_One-{number}.0.dist-info"
        info.mkdir()
        info.joinpath("entry_points.txt").write_text(
            "[other]\nno = odd_one:Kind\n\n# a note\n"
            "[the.group]\nodd = odd_one:Kind.number [extra]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / place))
    sys.modules.pop("odd_one", None)
    yield
    sys.modules.pop("odd_one", None)


def test_the_first_of_a_package_on_the_path_counts(installed):
    assert version("odd.one") == "2.0"
    (entry,) = entry_points("the.group")
    assert (entry.name, entry.package) == ("odd", "odd-one")
    assert entry.load() == 2


def test_a_folder_without_a_version_in_its_name_has_it_inside(tmp_path, monkeypatch):
    info = tmp_path / "plain.egg-info"
    info.mkdir()
    info.joinpath("PKG-INFO").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 3.4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version("plain") == "3.4"


def test_a_package_in_a_zip_file_is_found(tmp_path, monkeypatch):
    archive = tmp_path / "plugins.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("odd_zipped.py", "kind = 7\n")
        file.writestr(
            "odd_zipped-1.5.dist-info/entry_points.txt", "[a.group]\nodd=odd_zipped:kind\n"
        )
        file.writestr("odd_bare-2.0.dist-info/METADATA", "Name: odd_bare\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(str(archive))
    assert (version("odd-zipped"), version("odd-bare")) == ("1.5", "2.0")
    (entry,) = entry_points("a.group")
    assert (entry.package, entry.load()) == ("odd-zipped", 7)
    del sys.modules["odd_zipped"]


def test_places_and_files_that_cannot_be_read_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no zip file")
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(b"[a.group]\n\xff=x:y\n")
    for place in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        monkeypatch.syspath_prepend(str(place))
    assert version("broken") == "1.0"
    assert list(entry_points("a.group")) == []
