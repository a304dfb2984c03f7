"""Find a model in the hub's cache on this machine: no network, and no huggingface_hub.

The cache is huggingface_hub's own, in its documented layout, so a model that another program pulled
is found, and the other way round:

    $HF_HUB_CACHE/models--ORG--REPO/refs/main                 the commit that `main` was
    $HF_HUB_CACHE/models--ORG--REPO/snapshots/COMMIT/FILE     links to ../../blobs/ETAG

It is read here directly because importing huggingface_hub takes longer than `gemb --help` may.
Source: huggingface_hub `constants.py`, guide "Understand caching".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.caches import user_folder
from gemb.io.foreign import json_value, read_bytes
from gemb.io.locks import is_held
from gemb.io.paths import is_inside

PREFIX = "models--"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # a LoRA adapter, as PEFT saves it
PARTIAL = ".gemb-partial"  # how the name of a blob that is being downloaded ends
MOST_NAME = 4096  # bytes of a file in refs


@dataclass(frozen=True)
class HubName:
    """`org/repo[@revision][:file]`. Without a file it is the whole model folder.

    Raises:
        UsageError: the revision or the file would be looked for outside the repository's folder.
    """

    repo: str
    file: str = ""
    revision: str = "main"

    def __post_init__(self) -> None:
        for kind, name in (("revision", self.revision), ("file", self.file or "-")):
            if not is_inside(name):
                raise UsageError(
                    f"{self}: the {kind} '{name}' leaves the repository, or is too long; "
                    "write it as the hub does"
                )

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + revision + (f":{self.file}" if self.file else "")


def cache_folder() -> Path:
    """Return the folder where huggingface_hub keeps models; it may not exist."""
    home = os.environ.get("HF_HOME") or user_folder("XDG_CACHE_HOME", "~/.cache") / "huggingface"
    folder = (
        os.environ.get("HF_HUB_CACHE")
        or os.environ.get("HUGGINGFACE_HUB_CACHE")
        or str(Path(home) / "hub")
    )
    return Path(os.path.expanduser(os.path.expandvars(folder)))  # noqa: PTH111


def is_offline() -> bool:
    """Return whether the user has forbidden the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def repo_folder(repo: str) -> Path:
    """Return where the cache keeps a repository; it may not exist."""
    return cache_folder() / (PREFIX + repo.replace("/", "--"))


def find(name: HubName) -> Path | None:
    """Return the file, or the model folder, if the cache has all of it."""
    snapshot = snapshot_folder(name)
    if snapshot is None:
        return None
    if name.file:
        path = snapshot / name.file
        return path if _is_file(path) else None
    return None if missing_files(snapshot) else snapshot


def snapshot_folder(name: HubName) -> Path | None:
    """Return the folder of this revision's files, those that the cache has."""
    folder = repo_folder(name.repo)
    ref = folder / "refs" / name.revision
    try:
        commit = read_bytes(ref, MOST_NAME).decode("utf-8", "replace").strip()
    except (OSError, UsageError):
        commit = name.revision
    snapshot = folder / "snapshots" / commit
    return snapshot if is_inside(commit) and snapshot.is_dir() else None


def missing_files(folder: Path) -> list[str]:
    """Return the files that the model folder needs and lacks, by their names in it."""
    is_whole = any((folder / name).is_file() for name in WEIGHTS)
    if not is_whole and (folder / ADAPTER[0]).is_file():  # the rest is its base's
        return [name for name in ADAPTER if not (folder / name).is_file()]
    needed = ["config.json", "tokenizer.json"]
    config, modules, index = (
        _json(folder / name)
        for name in ("config.json", "modules.json", "model.safetensors.index.json")
    )
    # A decoder to start training from has no modules.json; an embedding model must.
    if isinstance(config, dict) and config.get("use_bidirectional_attention"):
        needed.append("modules.json")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith("Dense"):
            path = module.get("path")
            needed += [f"{path}/config.json", f"{path}/model.safetensors"]
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(weight_map, dict) and not (folder / "model.safetensors").is_file():
        needed += sorted({str(name) for name in weight_map.values()})
    else:
        needed.append("model.safetensors")
    return [name for name in needed if not is_inside(name) or not _is_file(folder / name)]


def cached_names() -> Iterator[HubName]:
    """Yield every model folder and GGUF file in the cache, `main` where there is one."""
    for folder in sorted(cache_folder().glob(PREFIX + "*")):
        repo = folder.name.removeprefix(PREFIX).replace("--", "/")
        revisions = ["main"] if (folder / "refs" / "main").is_file() else _commits(folder)
        for revision in revisions:
            snapshot = snapshot_folder(HubName(repo, "", revision))
            if snapshot is None:
                continue
            is_model = any((snapshot / name).is_file() for name in ("config.json", ADAPTER[0]))
            if is_model and not missing_files(snapshot):
                yield HubName(repo, "", revision)
            for path in sorted(snapshot.rglob("*.gguf")):
                yield HubName(repo, path.relative_to(snapshot).as_posix(), revision)


def partial_blobs(folder: Path) -> list[Path]:
    """Return what downloads have written so far, of one repository, by their names."""
    return sorted((folder / "blobs").glob(f"*{PARTIAL}"))


def left_downloads() -> Iterator[Path]:
    """Yield what downloads that were stopped left in the cache; the next one may go on with it."""
    for folder in sorted(cache_folder().glob(PREFIX + "*")):
        yield from (path for path in partial_blobs(folder) if not is_held(path))


def _commits(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("snapshots/*"))


def _is_file(path: Path) -> bool:
    """Return whether it is a file that one can see."""
    try:
        return path.is_file()
    except OSError:  # its name is too long, or its folder may not be entered
        return False


def _json(path: Path) -> object:
    """Return what the file holds, or None if it is absent or unreadable: opening it says so."""
    try:
        return json_value(read_bytes(path), path)
    except (OSError, UsageError):
        return None
