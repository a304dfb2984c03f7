"""Pull models from the Hugging Face hub into its cache, and remove them.

No pickle is ever part of a plan: only JSON, text and safetensors, or one GGUF file. `plan` lists
the files of a model, and `fetch` downloads those that the cache lacks.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from gemb.errors import GembError, Missing, UsageError
from gemb.io.caches import folder_size
from gemb.io.locks import lock_file
from gemb.io.notes import note
from gemb.io.paths import is_inside
from gemb.io.text import size_in_words, visible
from gemb.models.hub_cache import (
    ADAPTER,
    PARTIAL,
    WEIGHTS,
    HubName,
    cache_folder,
    find,
    is_offline,
    partial_blobs,
    repo_folder,
    snapshot_folder,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


ROOT_FILES = (  # names, or how they begin
    "README.md",  # it names the licence
    "adapter_config.json",
    "config",
    "modules.json",
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentence_bert_config.json",
    "model.safetensors.index.json",
)
NEEDED = ("config.json", "tokenizer.json")
MODULE_FOLDERS = ("_Dense", "_Pooling")
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".md")
READ_SIZE = 1 << 20  # bytes
TIMEOUT_S = 30  # without receiving a byte


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub."""

    name: str
    size_bytes: int
    sha256: str  # of a large file; empty for the others
    git_sha1: str  # of the others: the digest of git's blob; empty where the hub does not say


@dataclass(frozen=True)
class PullPlan:
    """The files of a model on the hub, and what the hub says about them."""

    name: HubName
    commit: str
    files: tuple[HubFile, ...]
    licence: str  # empty where the repository names none
    gated: bool  # the hub requires a token of a user who has accepted the licence

    @property
    def size_bytes(self) -> int:
        """Size of all files, those already here included."""
        return sum(file.size_bytes for file in self.files)

    @property
    def to_download(self) -> tuple[HubFile, ...]:
        """The files that the cache does not have."""
        commit = HubName(self.name.repo, "", self.commit)
        have = snapshot_folder(commit)
        return tuple(f for f in self.files if not (have and (have / f.name).is_file()))

    def describe(self) -> str:
        """Return one line: what, how much, under which licence."""
        licence = f"licence {self.licence}" if self.licence else "no licence named"
        gated = ", gated" if self.gated else ""
        bytes_left = sum(file.size_bytes - self._partial_bytes(file) for file in self.to_download)
        is_partial = bytes_left != self.size_bytes
        remaining = f", {size_in_words(bytes_left)} of it to download" if is_partial else ""
        count = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        size = size_in_words(self.size_bytes)
        return f"{self.name}: {size} in {count}{remaining}, {licence}{gated}"

    def blob(self, file: HubFile) -> Path:
        """Return where the cache keeps a large file, and under another name a part of it."""
        return repo_folder(self.name.repo) / "blobs" / file.sha256

    def _partial_bytes(self, file: HubFile) -> int:
        """Return how many bytes of a file came before its download was stopped."""
        blob = self.blob(file)
        parts = (blob, _partial(blob)) if file.sha256 else ()
        return max((part.stat().st_size for part in parts if part.is_file()), default=0)


def plan(name: HubName) -> PullPlan:
    """Ask the hub for the files of the model. Downloads none of them.

    Raises:
        Missing: the hub cannot be reached, or has no such model or file.
        UsageError: the repository holds no model folder.
    """
    from huggingface_hub import HfApi

    if is_offline():
        raise Missing(f"cannot ask the hub for {name}: HF_HUB_OFFLINE is set; unset it to pull")
    with hub_errors(name):
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    everything = [_hub_file(name, sibling) for sibling in info.siblings or ()]
    if name.file:
        files = tuple(file for file in everything if file.name == name.file)
        if not files:
            raise Missing(f"{name.repo} on the hub has no file '{name.file}'{_ggufs(everything)}")
    else:
        files = tuple(file for file in everything if is_needed(file.name))
        names = {file.name for file in files}
        is_adapter = ADAPTER[0] in names and not names & set(WEIGHTS)
        lacking = [name for name in (ADAPTER if is_adapter else NEEDED) if name not in names]
        if lacking:
            raise UsageError(
                f"{name.repo} on the hub is no model folder: it has no {lacking[0]}"
                f"{_ggufs(everything)}"
            )
    return PullPlan(
        name=name,
        commit=str(info.sha),
        files=files,
        licence=_licence(info),
        gated=bool(info.gated),
    )


def remove(name: HubName) -> int:
    """Remove the model from the cache and return how many bytes that freed.

    Without a file: the whole repository, every revision of it.

    Raises:
        Missing: the cache has no such model.
    """
    if name.file:
        return _remove_file(name)
    from huggingface_hub import scan_cache_dir

    folder = repo_folder(name.repo)
    if not folder.is_dir():
        raise Missing(f"{name.repo} is not in the hub cache ({cache_folder()})")
    cache = scan_cache_dir(cache_folder())
    repos = [repo for repo in cache.repos if repo.repo_path == folder]
    commits = [revision.commit_hash for repo in repos for revision in repo.revisions]
    if not commits:  # a first download was stopped, or the library takes the folder for damaged
        size = folder_size(folder)
        shutil.rmtree(folder)
        return size
    size = sum(map(folder_size, partial_blobs(folder)))
    strategy = cache.delete_revisions(*commits)
    strategy.execute()
    return size + int(strategy.expected_freed_size)


def is_needed(name: str) -> bool:
    """Return whether a file of a repository belongs to what opening the model folder needs."""
    path = PurePosixPath(name)
    if path.suffix not in SUFFIXES:
        return False
    if len(path.parts) == 1:
        return name.startswith(ROOT_FILES) or path.suffix == ".safetensors"
    return len(path.parts) == 2 and path.parts[0].endswith(MODULE_FOLDERS)


@contextlib.contextmanager
def hub_errors(name: HubName, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do.

    Raises:
        Missing: in place of every error but those of the disk.
    """
    from huggingface_hub import constants, errors

    target = f"{name.repo}/{file}" if file else str(name)
    site = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise Missing(
            f"{target} is gated: accept its licence at {site}/{name.repo}, "
            "then set HF_TOKEN or run: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise Missing(f"{name.repo} on the hub has no revision '{name.revision}'") from None
    except errors.LocalEntryNotFoundError as error:  # the library looked for a copy here
        raise _unreachable(target, error.__cause__ or error) from None
    except errors.EntryNotFoundError:
        raise Missing(f"{target} is not on the hub") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise Missing(
            f"'{name.repo}' is no path here and no model on the hub; "
            "a private one needs HF_TOKEN or: hf auth login"
        ) from None
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        # httpx's errors are no OSError, requests' are; those of the disk have a number and a file.
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise
        raise _unreachable(target, error) from None


def _unreachable(target: str, error: BaseException) -> Missing:
    from huggingface_hub import constants

    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return Missing(f"cannot get {target}: {constants.ENDPOINT} cannot be reached ({reason})")


def _hub_file(name: HubName, sibling: object) -> HubFile:
    """Return what the hub says of a file.

    Raises:
        UsageError: its name or digest, which become paths, would lead out of the cache.
    """
    lfs = getattr(sibling, "lfs", None)
    sha256 = str((lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else "")
    file = str(getattr(sibling, "rfilename", ""))
    if not is_inside(file) or not re.fullmatch("(?:[0-9a-f]{64})?", sha256):
        raise UsageError(
            f"{name.repo} on the hub lists the file {file!r} with the digest {sha256!r}, which "
            "would be written outside the cache; pull another model"
        )
    return HubFile(
        name=file,
        size_bytes=int(getattr(sibling, "size", 0) or 0),
        sha256=sha256,
        git_sha1=str(getattr(sibling, "blob_id", None) or ""),
    )


def _licence(info: ModelInfo) -> str:
    tags = info.tags or []
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")


def _ggufs(files: list[HubFile]) -> str:
    """Return the end of a message: which GGUF files the repository has."""
    names = [file.name for file in files if file.name.endswith(".gguf")]
    return f"; it has {', '.join(names)}: name one after a colon" if names else ""


def _remove_file(name: HubName) -> int:
    path = find(name)
    if path is None:
        raise Missing(f"{name} is not in the hub cache ({cache_folder()})")
    repo = repo_folder(name.repo).resolve()
    if not path.parent.resolve().is_relative_to(repo / "snapshots"):
        raise UsageError(f"{name}: a link leads out of the hub cache, to {path.parent.resolve()}")
    blob = path.resolve()
    is_link = path.is_symlink()
    size = path.stat().st_size
    path.unlink()
    if not is_link:
        return size
    links = (link for link in repo.glob("snapshots/**/*") if link.is_symlink())
    # Another revision may hold the same file; and what a link of a stranger leads to is not ours.
    if not blob.is_relative_to(repo / "blobs") or any(link.resolve() == blob for link in links):
        return 0
    blob.unlink()
    return size


def fetch(plan: PullPlan) -> Path:
    """Download what the cache lacks, check it, and return the model's path in the cache.

    A download that was stopped resumes where it ended. huggingface_hub forgets a part of a file
    when it is stopped (its pull request 4228), so large files are written to a partial file beside
    the cache's blobs; once whole and checked they are blobs, which the library links.

    The caller has printed the size.

    Raises:
        Missing: the hub cannot be reached, or does not let this user have the files.
        GembError: a file is not what the hub says it is; it is removed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if files := plan.to_download:
        for file in files:
            if file.sha256:
                with hub_errors(plan.name, file.name):
                    _fetch_blob(plan, file)
        with hub_errors(plan.name):
            # By revision, not by commit: then the cache notes which commit `main` is.
            snapshot = snapshot_download(
                plan.name.repo,
                revision=plan.name.revision,
                allow_patterns=[glob.escape(file.name) for file in files],
            )
        for file in files:
            path = Path(snapshot, file.name)
            if not file.sha256 and path.is_file():
                check(path, file)
    # The library notes the revision when it downloads; here all files may have been there already.
    model = find(plan.name) or find(HubName(plan.name.repo, plan.name.file, plan.commit))
    if model is None:
        raise Missing(f"{plan.name} on the hub lacks a file that gemb needs; pull another model")
    return model


def _fetch_blob(plan: PullPlan, file: HubFile) -> None:
    """Put a large file among the cache's blobs, whose names are their SHA-256."""
    blob = plan.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)

    def held(_data: str) -> None:
        note(f"another process is downloading {file.name}; this one waits for it")

    with os.fdopen(lock_file(partial, held), "r+b") as stream:
        stream.seek(0, os.SEEK_END)  # a download may have been stopped half-way
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        _append_rest(plan, file, stream)
        stream.flush()
        check(partial, file)
        partial.replace(blob)


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + PARTIAL)


def _append_rest(plan: PullPlan, file: HubFile, stream: BinaryIO) -> None:
    """Append what the partial file lacks; try again as long as each try brings something.

    Raises:
        OSError: the hub does not answer, or the disk is full.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

    url = hf_hub_url(plan.name.repo, file.name, revision=plan.commit)
    headers = build_hf_headers()
    address = get_hf_file_metadata(url).location
    if urlsplit(address).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for its storage
    size = file.size_bytes
    with tqdm(  # type: ignore[no-untyped-call]
        total=size, initial=stream.tell(), desc=visible(file.name), unit="B", unit_scale=True
    ) as progress:
        while (begin := stream.tell()) < size:
            request = Request(address, headers={**headers, "Range": f"bytes={begin}-"})
            try:
                with urlopen(request, timeout=TIMEOUT_S) as answer:
                    while block := answer.read(READ_SIZE):
                        stream.write(block)
                        progress.update(len(block))
            except (ConnectionError, TimeoutError, HTTPException):
                pass
            if stream.tell() == begin:
                raise ConnectionError(f"it sends nothing of {file.name} beyond byte {begin}")


def check_all(plan: PullPlan) -> None:
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
