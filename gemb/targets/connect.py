"""Open the target that an address names; only its own library is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemb.errors import Missing

if TYPE_CHECKING:
    from gemb.targets.addresses import Address
    from gemb.targets.base import Target


def open_target(address: Address) -> Target:
    """Return the open target.

    Raises:
        Missing: its library is not installed.
        UsageError: there is no such table, or several.
        GembError: it cannot be reached.
    """
    try:
        match address.kind:
            case "postgres":
                from gemb.targets.postgres import PostgresTarget

                return PostgresTarget(address)
            case "lance":
                from gemb.targets.lance import LanceTarget

                return LanceTarget(address)
        from gemb.targets.qdrant import QdrantTarget

        return QdrantTarget(address)
    except ImportError as error:
        extra = {"lance": "lancedb"}.get(address.kind, address.kind)
        raise Missing(f"{address.shown} needs {error.name}: pip install 'gemb[{extra}]'") from None
