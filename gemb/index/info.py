"""What an index is, for people and for programs."""

from __future__ import annotations

from pathlib import Path

from gemb.index.compact import size
from gemb.index.reader import Index
from gemb.index.source import Source, described
from gemb.io.text import visible


def info(folder: Path) -> dict[str, object]:
    """Return what an index is, by name.

    Raises:
        UsageError: the folder is no index.
        GembError: it is damaged.
    """
    with Index.open(folder) as index:
        manifest = index.manifest
        source = Source.from_json(manifest.source)
        files = index.connection.execute("SELECT count(*) FROM files WHERE passages > 0")
        return {
            "path": str(folder.absolute()),
            "rows": index.count,
            "removed": len(index.stored) - index.count,
            "files": files.fetchone()[0],
            "model": manifest.model,
            "fingerprint": index.spec.fingerprint,
            "model_fingerprint": index.spec.model,
            "task": manifest.task,
            "prompt": index.spec.prompt,
            "query_task": manifest.query_task,
            "dim": index.spec.dim,
            "dtype": index.spec.dtype,
            "max_tokens": index.spec.max_tokens,
            "codes": dict(manifest.coder)["kind"] if manifest.coder else None,
            "is_coded": index.codes is not None,
            "has_background": manifest.background is not None,
            "size_bytes": size(folder),
            "source": source.to_json(),
            "built": manifest.built,
            "synced": manifest.synced,
            "made_by": manifest.made_by,
        }


def facts(found: dict[str, object]) -> list[tuple[str, ...]]:
    """Return what `info` found as lines of name and value."""
    from gemb.models.hub import show_size

    source = Source.from_json(found["source"])  # type: ignore[arg-type]
    removed = f", {found['removed']:,} removed" if found["removed"] else ""
    files = f" of {found['files']:,} files" if found["files"] else ""
    lines = [
        ("path", str(found["path"])),
        ("rows", f"{found['rows']:,}{files}{removed}"),
        ("model", f"{found['model'] or 'not named'} (fingerprint {found['model_fingerprint']})"),
        ("prompt", f"{found['task']}: '{found['prompt']}'"),
        ("vectors", f"{found['dim']} wide, {found['dtype']}, fingerprint {found['fingerprint']}"),
        ("codes", str(found["codes"]) if found["is_coded"] else "not all there"),
        ("source", f"{source.kind} of {described(source.paths)}, from {source.base}"),
        ("size", show_size(found["size_bytes"])),  # type: ignore[arg-type]
        ("built", f"{found['built']}, gemb {found['made_by']}"),
        ("synced", str(found["synced"])),
    ]
    return [(name, visible(value)) for name, value in lines]
