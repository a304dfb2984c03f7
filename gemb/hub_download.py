"""Download what a plan names into the hub's cache: resumed, checked, in the library's layout.

huggingface_hub drops a part of a file when it is stopped (its pull request 4228), so a gigabyte
over a poor line would begin again each time. Large files are therefore fetched here, into a
partial file beside the cache's blobs, and the library links them when they are whole and checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from gemb.errors import GembError, Missing
from gemb.hub import HubFile, Plan, hub_errors
from gemb.hub_cache import HubName, find, repo_folder, snapshot_folder

READ_SIZE = 1 << 20


def fetch(plan: Plan) -> Path:
    """Download what the cache lacks, check it, and return the model's path in the cache.

    A download that was stopped goes on where it was. The caller has said how much it is.

    Raises:
        Missing: the hub cannot be reached, or does not let this user have the files.
        GembError: a file is not what the hub says it is; it is removed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    for file in plan.to_download:
        with hub_errors(plan.name, file.name):
            if file.sha256:
                _fetch_blob(plan, file)
            # By revision, not by commit: then the cache notes which commit `main` is.
            path = hf_hub_download(plan.name.repo, file.name, revision=plan.name.revision)
        if not file.sha256:
            check(Path(path), file)
    # The library notes the revision when it downloads; here all files may have been there already.
    found = find(plan.name) or find(HubName(plan.name.repo, plan.name.file, plan.commit))
    if found is None:
        raise Missing(f"{plan.name} on the hub lacks a file that gemb needs; pull another model")
    return found


def check_all(plan: Plan) -> None:
    """Check every file of the plan that the cache has.

    Raises:
        GembError: one differs from what the hub has; it is removed.
    """
    snapshot = snapshot_folder(HubName(plan.name.repo, "", plan.commit))
    for file in plan.files:
        if snapshot and (snapshot / file.name).is_file():
            check(snapshot / file.name, file)


def check(path: Path, file: HubFile) -> None:
    """Compare a downloaded file with its size and digest on the hub; remove it if it differs.

    Raises:
        GembError: it differs.
    """
    size = path.stat().st_size
    # git's object: a header, then the content (git documentation, "Git Objects").
    sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    digest = hashlib.sha256() if file.sha256 else sha1
    expected = file.sha256 or file.git_sha1
    if expected:
        with path.open("rb") as stream:
            while block := stream.read(READ_SIZE):
                digest.update(block)
    if size != file.size_bytes or (expected and digest.hexdigest() != expected):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise GembError(f"{file.name}: the download is broken, and removed; run the command again")


def _fetch_blob(plan: Plan, file: HubFile) -> None:
    """Put a large file among the cache's blobs, whose names are their SHA-256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob = repo_folder(plan.name.repo) / "blobs" / file.sha256
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{file.sha256}.gemb-partial")
    with partial.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another pull of the same file: wait for it
        stream.seek(0, os.SEEK_END)  # which may have been stopped half-way
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        url = hf_hub_url(plan.name.repo, file.name, revision=plan.commit)
        headers = build_hf_headers()
        place = get_hf_file_metadata(url).location
        if urlsplit(place).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is for the hub, not for its storage
        http_get(
            place,
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=file.size_bytes,
            displayed_filename=file.name,
        )
        stream.flush()
        check(partial, file)
        partial.replace(blob)
