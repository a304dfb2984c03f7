"""What a clone without Git LFS has in place of a large file."""

from __future__ import annotations

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 1211154464\n"
)
OLD_POINTER = POINTER.replace("git-lfs", "hawser")
