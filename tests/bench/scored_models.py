"""The models of the scores table, named or given by a path, and opened as gemb encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from other_models import OTHERS, Absent, Other, Vectors

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder
    from gemb.models.profile import ModelProfile


@dataclass(frozen=True, kw_only=True)
class Own:
    """A model that gemb runs."""

    name: str
    reference: str  # of gemb
    precision: str = "auto"


MODELS: tuple[Own | Other, ...] = (
    Own(name="mini", reference="mini"),
    Own(name="embeddinggemma-300m-bf16", reference="embeddinggemma-300m", precision="bf16"),
    Own(name="embeddinggemma-300m-q8_0", reference="embeddinggemma-300m:q8_0"),
    Own(name="embeddinggemma-300m-q4_0", reference="embeddinggemma-300m:q4_0"),
    *OTHERS,
)


def chosen(spec: str) -> Own | Other:
    """Return the model that NAME, NAME=REFERENCE or a path means.

    Raises:
        Absent: there is none.
    """
    name, _, reference = spec.partition("=")
    known = next((one for one in MODELS if one.name == name), None)
    if isinstance(known, Own) and reference:
        return Own(name=name, reference=reference, precision=known.precision)
    if known:
        return known
    path = Path(reference or name)
    if not path.exists():
        raise Absent(f"{spec}: no path, and none of {', '.join(one.name for one in MODELS)}")
    precision = "bf16" if path.is_dir() else "auto"
    return Own(name=name if reference else path.stem, reference=str(path), precision=precision)


class OtherEncoder:
    """Another model as a gemb `Encoder`: a text's ids are its number, as often as it is long."""

    def __init__(self, model: Other, fingerprint: str) -> None:
        from gemb.models.profile import ModelProfile
        from gemb.models.prompts import TASKS

        words = {name: model.query for names in TASKS.values() for name in names}
        words |= dict.fromkeys(TASKS["document"], model.document)
        self.profile: ModelProfile = ModelProfile(
            dim=model.dims[0],
            matryoshka_dims=model.dims,
            max_tokens=1 << 24,  # the model itself cuts
            closing_tokens=0,
            prompts=words,
            dtype="own",
            fingerprint=fingerprint,
        )
        self._texts: list[str] = []
        self._encode = model.load()

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return ids that lead `encode` to the texts."""
        first = len(self._texts)
        self._texts += texts
        return [np.full(len(text) // 4 + 1, row, np.int32) for row, text in enumerate(texts, first)]

    def encode(self, batch: Sequence[TokenIds]) -> Vectors:
        """Return unit vectors, float32 [len(batch), D]."""
        return self._encode([self._texts[ids[0]] for ids in batch])


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of a model before it is opened."""

    fingerprint: str
    dims: tuple[int, ...]
    size_bytes: int
    open: Callable[[], Encoder] = field(repr=False)


def describe(model: Own | Other) -> Described:
    """Return what is known of a model.

    Raises:
        Absent: it is not on this machine.
    """
    from gemb.backend import Runtime
    from gemb.errors import Missing
    from gemb.models.fingerprint import path_fingerprint
    from gemb.models.references import resolve
    from gemb.plugins import for_model

    if isinstance(model, Other):
        mark = "-".join(path_fingerprint(path) for path in model.paths)
        return Described(
            fingerprint=mark,
            dims=model.dims,
            size_bytes=sum(path.stat().st_size for path in model.paths),
            open=lambda: OtherEncoder(model, mark),
        )
    try:
        path = resolve(model.reference, download=False)
    except Missing as error:
        raise Absent(str(error)) from None
    backend = for_model(path, "auto")
    found = backend.describe(path)
    is_half = model.precision == "bf16"
    return Described(
        fingerprint=f"{found.fingerprint}-{model.precision}",
        dims=found.matryoshka_dims,
        size_bytes=2 * found.parameters if is_half else found.size_bytes,
        open=lambda: backend.open(path, Runtime(precision=model.precision)),
    )
