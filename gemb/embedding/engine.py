"""The engine that runs a model: the best backend that suits it, and that computes rightly here.

A library may be built wrongly for a processor, and then gives vectors that look like any others. So
the vector of one text by the bundled model is stored, and an engine has to come near it, once for
each version of its library and of gemb, each precision and each kind of processor; the cache
remembers that it did.

Engines round differently, so the vectors that two of them give to one text with one model are
alike, but not equal. Those that agree as `AGREEMENT` says may stand beside each other in a cache or
in an index.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb import __version__
from gemb.backend import Runtime
from gemb.errors import GembError, Missing, UsageError
from gemb.io.atomic import new_file
from gemb.io.caches import engines_cache
from gemb.io.machine import processor_kind
from gemb.io.notes import warn
from gemb.models.references import bundled
from gemb.plugins import candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.backend import Backend, Encoder

KNOWN = "mini.vector.json"
# Mean and least cosine between two engines' vectors of one text. Of 60 varied texts by the bundled
# model, where weights have seven bits for want of exact products: int8 to fp32 .9962 and .9904,
# llama.cpp to fp32 .9995 and .9976, int8 to llama.cpp .9957 and .9825, which sets the bar.
# Scripts that the vocabulary lacks are cut into bytes, and round most.
AGREEMENT = (0.995, 0.98)


class KnownVector(NamedTuple):
    """A text, and its vector by the bundled model in fp32."""

    fingerprint: str  # of the bundled model
    text: str  # without a prompt
    vector: NDArray[np.float32]  # [dim]


@dataclass(frozen=True)
class Engine:
    """An open model and the backend that runs it."""

    backend: Backend
    encoder: Encoder

    @property
    def name(self) -> str:
        """Backend, precision and library: "onnx int8 (onnxruntime 1.32.0)"."""
        return engine_name(self.backend, self.encoder)


def open_engine(model: Path, runtime: Runtime | None = None, name: str = "auto") -> Engine:
    """Return the open model, run by the best engine, or by the one asked for by name.

    Args:
        model: the file or folder.
        runtime: how it is to be run.
        name: of a backend, as `gemb.plugins.for_model` takes it.

    Raises:
        UsageError: no backend knows this kind of file, or the files are broken.
        Missing: a library is not installed.
        GembError: an engine computes wrongly here, and no other opens the model.
    """
    runtime = runtime or Runtime()
    *others, last = candidates(model, name, runtime)
    for backend in others:
        try:
            return _opened(backend, model, runtime)
        except (UsageError, Missing):  # of the model's files, and of what was asked for
            raise
        except GembError as error:
            warn(f"{error}; another backend is taken")
    return _opened(last, model, runtime)


def _opened(backend: Backend, model: Path, runtime: Runtime) -> Engine:
    encoder = backend.open(model, runtime)
    if fault := wrong(backend, encoder, runtime):
        raise GembError(f"backend '{backend.name}' {fault}: install {backend.engine()} again")
    encoder.profile = replace(encoder.profile, engine=engine_name(backend, encoder))
    return Engine(backend, encoder)


def engine_name(backend: Backend, encoder: Encoder) -> str:
    """Return backend, precision and library: "onnx int8 (onnxruntime 1.32.0)"."""
    library = backend.engine()
    return f"{backend.name} {encoder.profile.dtype}" + (f" ({library})" if library else "")


def wrong(backend: Backend, encoder: Encoder, runtime: Runtime) -> str:
    """Return what is wrong with an engine on this machine, after "backend NAME"; empty: nothing.

    An engine that nobody would choose for the bundled model is not judged.
    """
    known = known_vector()
    model = bundled()
    if not model.is_file() or not backend.can_open(model) or not backend.suits(model, runtime):
        return ""
    parts = (backend.name, backend.engine(), encoder.profile.dtype, runtime.device, __version__)
    words = "-".join(part.replace(" ", "-").replace("/", "-") for part in parts if part)
    passed = engines_cache() / f"{words}-{processor_kind()}-{known.fingerprint}.passed"
    if passed.is_file():
        return ""
    if encoder.profile.fingerprint != known.fingerprint:
        try:
            encoder = backend.open(model, runtime)
        except UsageError:  # a precision that such a file does not have
            return ""
        if encoder.profile.fingerprint != known.fingerprint:
            return ""  # the bundled model is another one
    cosine = known_cosine(encoder)
    if not cosine >= AGREEMENT[1]:
        return (
            f"computes wrongly on this machine: its vector of a known text has cosine {cosine:.3f}"
        )
    with contextlib.suppress(OSError, GembError):
        passed.parent.mkdir(parents=True, exist_ok=True)
        with new_file(passed) as part:
            part.write_text(f"{cosine:.6f}\n")
    return ""


def known_cosine(encoder: Encoder) -> float:
    """Return the cosine of an engine's vector of the known text to the stored one."""
    known = known_vector()
    (ids,) = encoder.tokenize([known.text])
    return float(encoder.encode([ids])[0] @ known.vector)


@cache
def known_vector() -> KnownVector:
    """Return the text that engines are tried with, and its vector."""
    stored = json.loads((files("gemb") / "data" / KNOWN).read_bytes())
    vector = np.array(stored["vector"], np.float32)
    return KnownVector(stored["fingerprint"], stored["text"], vector / np.linalg.norm(vector))
