"""Model references: what a user may write after `-m`, and where its files are.

    mini                           the model that comes with gemb; the default
    draft                          mini's draft, which comes with gemb: a static encoder, a folder
    embeddinggemma-300m            google/embeddinggemma-300m from the hub, the folder
    embeddinggemma-300m:q4_0       a GGUF file made from it here; also :q8_0, :bf16
    path/to/folder                 a model folder
    path/to/model.gguf             a GGUF file
    org/repo                       a model folder on the hub
    org/repo:file.gguf             a file on the hub
    org/repo@revision[:file]       the same at a branch, tag or commit

The order of the search: the names above; then a path that exists; then the hub. So `./mini` is a
folder of that name, and `a/b` is the hub's only where there is no such path here. What begins with
`.`, `/` or `~`, and what ends with `.gguf` and names no repository, is never looked for on the hub.

No public GGUF of EmbeddingGemma is known to hold its two dense layers (ggml-org's do not: llama.cpp
issue 18677), and without them the vectors are wrong. So the typed names mean files made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gemb.errors import Missing, UsageError
from gemb.io.caches import user_folder
from gemb.io.notes import note
from gemb.io.text import did_you_mean
from gemb.models.hub_cache import (
    HubName,
    cache_folder,
    cached_names,
    find,
    is_offline,
    missing_files,
    repo_folder,
    snapshot_folder,
)

DEFAULT = "mini"
DRAFT = "draft"
ALIASES = {"embeddinggemma-300m": HubName("google/embeddinggemma-300m")}
TYPES = ("q4_0", "q8_0", "bf16")  # a typed alias is a GGUF file of this type

# Repository names: the hub's own rule (huggingface_hub `validate_repo_id`).
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^\s:@]+))?(?::([^\s:]+))?")


def resolve(reference: str, *, download: bool = True) -> Path:
    """Return the folder or GGUF file that the reference means.

    A model in the cache needs no network. Another is downloaded, after a note of how much it is,
    unless `download` is false.

    Raises:
        UsageError: the reference is no name, no path and no hub reference.
        Missing: there is no such file, or it is not in the cache and cannot be downloaded.
        GembError: what was downloaded is not what the hub says it should be.
    """
    target = locate(reference)
    if isinstance(target, Path):
        if not target.exists():
            raise Missing(_absent(reference, target))
        return target
    cached = find(target)
    if cached:
        return cached
    if not download or is_offline():
        why = (
            "HF_HUB_OFFLINE forbids to fetch it: HF_HUB_OFFLINE=0 gemb models pull"
            if is_offline()
            else "it has not been pulled: gemb models pull"
        )
        raise Missing(
            f"{reference}: no such path, not in the hub cache ({_lacking(target)}), and {why} "
            f"{reference}"
        )
    from gemb.models.hub import fetch, plan

    planned = plan(target)
    note(f"downloading {planned.describe()}, to {cache_folder()}")
    return fetch(planned)


def locate(reference: str) -> Path | HubName:
    """Return the path that the reference means, which may not exist, or its name on the hub.

    Raises:
        UsageError: the reference is no name, no path and no hub reference.
    """
    named = _named(reference)
    if named:
        if Path(reference).exists():
            note(f"'{reference}' is gemb's own name; for what is here write ./{reference}")
        return named
    path = Path(os.path.expanduser(reference))  # noqa: PTH111 - of an unknown user, as it is
    if reference and path.exists():
        return path
    is_file = reference.endswith(".gguf") and ":" not in reference
    if is_file or reference.startswith((".", "/", "~")):
        return path
    match = _HUB.fullmatch(reference)
    if match:
        return HubName(match[1], match[3] or "", match[2] or "main")
    if "/" in reference:
        return path
    raise UsageError(_unknown(reference))


def elsewhere(reference: str) -> str:
    """Return the reference as another process may write it: a path is whole, a name is a name."""
    target = None if _named(reference) else locate(reference)
    return str(target.absolute()) if isinstance(target, Path) else reference


def bundled() -> Path:
    """Return the file of the model that comes with gemb; it may not exist."""
    return Path(__file__).parents[1] / "data" / "mini.gguf"


def bundled_draft() -> Path:
    """Return the folder of the bundled model's draft; it may not exist."""
    return bundled().parent / "draft"


def made_folder() -> Path:
    """Return where the files of typed names are; it may not exist."""
    return user_folder("XDG_DATA_HOME", "~/.local/share") / "gemb" / "models"


def is_cached(name: HubName) -> bool:
    """Return whether the hub's cache has the file, or any part of the repository."""
    return find(name) is not None if name.file else repo_folder(name.repo).is_dir()


def names() -> list[str]:
    """Return the references that are names of gemb's own."""
    typed = [f"{alias}:{type_}" for alias in ALIASES for type_ in TYPES]
    return [DEFAULT, DRAFT, *ALIASES, *typed]


def local_references() -> Iterator[str]:
    """Yield a reference for every model that is on this machine; not the user's own files."""
    for name in names():
        target = _named(name)
        if isinstance(target, Path) and target.exists():
            yield name
    aliases = {hub_name: alias for alias, hub_name in ALIASES.items()}
    for hub_name in cached_names():
        yield aliases.get(hub_name, str(hub_name))


def _named(reference: str) -> Path | HubName | None:
    if reference == DEFAULT:
        return bundled()
    if reference == DRAFT:
        return bundled_draft()
    if reference in ALIASES:
        return ALIASES[reference]
    alias, _, type_ = reference.partition(":")
    if alias in ALIASES and type_ in TYPES:
        return made_folder() / f"{alias}-{type_}.gguf"
    return None


def _absent(reference: str, path: Path) -> str:
    """Return the message for a path that does not exist."""
    if reference in (DEFAULT, DRAFT):
        return f"the bundled model is not in this install ({path}); install gemb again, or use -m"
    alias, _, type_ = reference.partition(":")
    if alias in ALIASES:
        return (
            f"{reference} has not been made yet: mkdir -p {path.parent} && "
            f"gemb export-gguf {alias} --outtype {type_} -o {path}"
        )
    return f"{path}: no such file or folder"


def _lacking(name: HubName) -> str:
    """Return what the cache lacks of a model."""
    if name.file:
        return f"no {name.file}"
    snapshot = snapshot_folder(name)
    return f"no {', '.join(missing_files(snapshot))}" if snapshot else "no config.json"


def _unknown(reference: str) -> str:
    """Return the message about a text that is no reference, with the nearest name."""
    hint = did_you_mean(reference, [*names(), *local_references()])
    hint = f"; {hint}" if hint else ""
    own = ", ".join([DEFAULT, DRAFT, *ALIASES])
    return (
        f"no model '{reference}' and no such path{hint} "
        f"(a model is one of {own}, a folder, a .gguf or org/repo)"
    )
