"""Where a target is: `postgres://host/db`, `lance:FOLDER` or `NAME.lance`, `qdrant:URL`.

A password in an address is refused: every user of the machine sees it in the list of processes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from gemb.errors import UsageError
from gemb.io.text import visible

POSTGRES = ("postgres://", "postgresql://")
LANCE = "lance:"
QDRANT = "qdrant:"
EXAMPLES = "postgres://HOST/DATABASE, lance:FOLDER, NAME.lance or qdrant:URL"
_HOST = re.compile(r"[\w.-]+:\d+(/|$)")  # with a port
SECRETS = (  # of which no message may speak
    *("PGPASSWORD", "QDRANT_API_KEY", "LANCEDB_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY"),
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A table in a database."""

    kind: str  # postgres, lance or qdrant
    place: str  # as the database's library takes it
    table: str  # empty: the only one of gemb that is there

    @property
    def shown(self) -> str:
        """The place for messages, without what may be secret."""
        if self.kind != "postgres":
            return visible(self.place.partition("?")[0])
        parts = urlsplit(self.place)
        host = dict(parse_qsl(parts.query)).get("host", "")
        return visible(f"postgres://{parts.netloc.rpartition('@')[2] or host}{parts.path}")


def is_target(text: str) -> bool:
    """Return whether a word of the command line is an address, not a file."""
    if text.startswith((*POSTGRES, LANCE, QDRANT)):
        return True
    return Path(text).suffix == ".lance" and (text.rstrip("/") != ".lance")


def address_of(text: str, table: str = "") -> Address:
    """Return the address that a word of the command line is.

    Args:
        text: the word.
        table: its name; empty: that in the address, if there is one.

    Raises:
        UsageError: it is none, or holds a password.
    """
    if text.startswith(POSTGRES):
        return Address(kind="postgres", place=_without_secret(text), table=table)
    if text.startswith(QDRANT):
        place = text.removeprefix(QDRANT)
        if not place or place.startswith("//") or _HOST.match(place):  # which is no folder
            raise UsageError(
                "qdrant: needs a URL with http:// or https://, as in qdrant:http://localhost:6333, "
                "or a folder"
            )
        return Address(kind="qdrant", place=_without_secret(place), table=table)
    if not is_target(text):
        shown = re.sub("//.*@", "//", text.partition("?")[0])
        raise UsageError(f"{visible(shown, 80)} is no target; name {EXAMPLES}")
    place = text.removeprefix(LANCE).rstrip("/")
    if place.endswith(".lance") and not text.startswith(LANCE):
        folder, _, name = place.rpartition("/")
        table = table or name[: -len(".lance")]
        return Address(kind="lance", place=_without_secret(folder or "."), table=table)
    if not place:
        raise UsageError("lance: needs a FOLDER or a bucket, as in lance:vectors")
    return Address(kind="lance", place=_without_secret(place), table=table)


def table_name(source: str) -> str:
    """Return the name of a table for an index: docs for wiki/docs.gemb, gemb for a pipe."""
    stem = re.sub(r"\W+", "_", Path(source).stem.lower()).strip("_")
    return stem or "gemb"


def only_table(names: list[str], address: Address) -> str:
    """Return the one table of gemb that is there.

    Raises:
        UsageError: there is none, or there are several.
    """
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError(f"{address.shown} has no table of gemb index push")
    shown = ", ".join(visible(name, 40) for name in sorted(names)[:10])
    raise UsageError(f"{address.shown} has several tables; name one with --table: {shown}")


def unspoken(message: str) -> str:
    """Return the first line of another library's message, without a password or place in Rust."""
    line = next(iter(message.strip().splitlines()), "")
    line = re.sub(r", /\S+\.rs:\d+:\d+", "", line)
    for name in SECRETS:
        if secret := os.environ.get(name):
            line = line.replace(secret, "***")
    return visible(line, 300)


def _without_secret(place: str) -> str:
    """Return an address that holds no password.

    Raises:
        UsageError: it does, or it is no address.
    """
    try:
        parts = urlsplit(place)
        has_secret = parts.password is not None or ":" in _user(place)
        options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    except ValueError:
        raise UsageError("the address of the target is no URL") from None
    secrets = {"password", "sslpassword", "api_key", "api-key", "aws_secret_access_key"}
    if has_secret or options & secrets:
        raise UsageError(
            "a password in the address is seen by every user of the machine; PGPASSWORD, "
            "PGPASSFILE (~/.pgpass), QDRANT_API_KEY or AWS_SECRET_ACCESS_KEY keeps it"
        )
    return place


def _user(place: str) -> str:
    """Return what is before the @ of a URL; a password in it may have / ? and # unquoted."""
    rest = place.partition("://")[2]
    authority, _, path = rest.partition("/")
    if "@" in authority:
        return authority.rpartition("@")[0]
    return authority if "@" in path.partition("?")[0] else ""
