"""Indexes that are not pushed."""

from __future__ import annotations

import zlib

from fake_backend import Gemb, write_model
from pushed_rows import refused


def test_an_index_with_drafts(gemb: Gemb) -> None:
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    gemb.environment["GEMB_DRAFT"] = "draft.fake"
    write_model(gemb.model, is_bag=True, max_tokens=512)
    model = f"{zlib.crc32(b'fake'):016x}"
    write_model(
        gemb.folder / "draft.fake", is_bag=True, max_tokens=512, name="draft", draft_of=[model]
    )
    (gemb.folder / "docs").mkdir()
    for number in range(3):
        (gemb.folder / f"docs/{number}.txt").write_text(f"words of {number}\n")
    built = gemb("index", "build", "d.gemb", "docs", "--draft")
    assert built.returncode == 0, built.stderr
    line = refused(gemb, "index", "push", "d.gemb", "lance:db")
    assert line == (
        "3 rows of d.gemb have drafts of vectors: gemb index refine d.gemb makes real ones"
    )
    assert not (gemb.folder / "db").exists()
