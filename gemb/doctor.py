"""The checks of `gemb doctor`: this machine, the backends, the models, and a short self-test."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Check, Runtime
from gemb.embedding.engine import AGREEMENT, known_cosine, known_vector, open_engine
from gemb.errors import GembError
from gemb.io.atomic import leftovers
from gemb.io.caches import cache_sizes, caches_folder, folder_size
from gemb.io.machine import cores, memory
from gemb.io.text import size_in_words
from gemb.models.hub_cache import cache_folder, is_offline, left_downloads
from gemb.models.references import DEFAULT, bundled, bundled_draft, local_references, resolve
from gemb.plugins import backends, candidates, describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder

# The flags that decide which matrix kernels ggml and oneDNN choose (ggml-cpu `ggml_cpu_has_*`).
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
# Of many lengths: those that share a batch see whether it matters.
SELF_TEST_TEXTS = (
    "task: search result | query: Which planet is known as the Red Planet?",
    "title: none | text: Mars is often called the Red Planet, for the rust in its soil.",
    *("a", "two words", "An order can be cancelled.", "42", "\N{SNOWMAN}", "Как отменить заказ?"),
    "The kettle boils, and nobody has filled the pot that stands beside it on the table yet.",
    "def add(a, b):\n    return a + b\n",
    "A sentence that goes on for a while, " * 6,
    "already shipped",
)
# Weights of 4 bits: with another number of rows ggml takes another kernel, which adds in another
# order, after rounding activations to 8 bits. What goes wrong for real, a text that sees its
# neighbour, moves components by some 0.03, the size of one in 768.
BATCH_TOLERANCE = 1e-2  # 7e-3 was seen with q4_0 and q8_0
LENGTH_TOLERANCE = 1e-3  # of a unit vector's length


def checks(model: str) -> Iterator[Check]:
    """Yield each check as soon as it is done; the slow self-test of this model comes last."""
    yield _python()
    yield _processor()
    yield _memory()
    installed = backends()
    for backend in installed.values():
        for check in backend.checks():
            yield Check(f"{backend.name}: {check.name}", check.ok, check.detail, check.fix)
    if not installed:
        yield Check("backends", False, "none is installed", "pip install --force-reinstall gemb")
    yield _bundled_model()
    yield _bundled_draft()
    yield _hub_cache()
    yield _caches()
    yield _leftovers()
    yield from _known_vectors()
    yield _self_test(model)


def _python() -> Check:
    try:
        release = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # no Linux, or a container without the file
        release = ""
    system = release or f"{platform.system()} {platform.release()}"
    return Check(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {system}, {platform.machine()}",
        "install Python 3.11 or newer",
    )


def _processor() -> Check:
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in ("flags", "Features"):
                flags.update(value.split())
            elif name == "model name":
                model = value
    known = [flag for flag in CPU_FLAGS if flag in flags]
    features = " ".join(known) or "no known flag"
    count, every = cores(), os.cpu_count() or 1
    of = f" of {every}" if count < every else ""
    return Check("processor", True, f"{model}, {count}{of} cores, {features}")


def _memory() -> Check:
    usable = memory()
    if usable is None:
        return Check("memory", True, "unknown on this system")
    limit = ", the limit of its control group" if usable.is_limited else ""
    return Check(
        "memory",
        usable.free > 500e6,  # the bundled model and its buffers need about 300 MB
        f"{usable.free / 1e9:.1f} GB free of {usable.total / 1e9:.1f} GB{limit}",
        "end some programs, or raise the limit: a small model needs 0.5 GB",
    )


def _bundled_model() -> Check:
    path = bundled()
    if path.is_file():
        return Check("bundled model", True, f"{path}, {size_in_words(path.stat().st_size)}")
    fix = "pip install --force-reinstall gemb; or set GEMB_MODEL"
    return Check("bundled model", False, f"{path} is not there", fix)


def _bundled_draft() -> Check:
    """Look whether the bundled draft is there, and one of the bundled model."""
    path, fix = bundled_draft(), "pip install --force-reinstall gemb"
    try:
        draft = describe(path)
        if bundled().is_file() and describe(bundled()).fingerprint not in draft.draft_of:
            return Check("bundled draft", False, f"{path} is not of the bundled model", fix)
    except (GembError, OSError) as error:
        return Check("bundled draft", False, str(error), fix)
    return Check("bundled draft", True, f"{path}, {size_in_words(draft.size_bytes)}")


def _known_vectors() -> Iterator[Check]:
    """Try each engine that may run the bundled model with a text whose vector is stored."""
    path = bundled()
    try:
        engines = candidates(path) if path.is_file() else []
    except GembError as error:
        yield Check("engines", False, str(error), "unset GEMB_BACKEND, or name another backend")
        return
    for backend in engines:
        name = f"{backend.name}: known vector"
        try:
            encoder = backend.open(path, Runtime())
            if encoder.profile.fingerprint != known_vector().fingerprint:
                continue
            cosine = known_cosine(encoder)
        except (GembError, OSError) as error:
            yield Check(name, False, str(error), f"install {backend.engine()} again")
            continue
        yield Check(
            name,
            cosine >= AGREEMENT[1],
            f"cosine {cosine:.4f} to the one that is stored, in {encoder.profile.dtype}",
            f"this engine is not used here; install {backend.engine()} again",
        )


def _hub_cache() -> Check:
    folder = cache_folder()
    offline = ", offline (HF_HUB_OFFLINE)" if is_offline() else ""
    fix = f"make it writable: chown -R $USER {folder}; or set HF_HOME"
    try:
        if not folder.exists():
            return Check("hub cache", True, f"{folder} is not there yet{offline}")
        count = sum(1 for name in local_references() if name != DEFAULT)
    except OSError as error:
        return Check("hub cache", False, f"{folder}: {error.strerror}", fix)
    plural = "" if count == 1 else "s"
    is_ours = os.access(folder, os.R_OK | os.W_OK)
    return Check("hub cache", is_ours, f"{folder}, {count} model{plural}{offline}", fix)


def _caches() -> Check:
    """Report the sizes of the caches, whose content is computed again where it is missing."""
    sizes = {name: size for name, size in cache_sizes().items() if size}
    parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in sizes.items())
    detail = f"{caches_folder()}, {parts or 'empty'}; any of it may be removed with rm -r"
    return Check("caches", True, detail)


def _leftovers() -> Check:
    """Report what killed runs left in the caches, in the current and in the temporary folder."""
    paths: dict[str, Path] = {}  # by real path
    folders = [Path(), Path(tempfile.gettempdir())]
    folders += [Path(parent) for parent, _, _ in os.walk(caches_folder())]
    for folder in folders:
        paths |= {os.path.realpath(path): path for path in leftovers(folder)}
    paths |= {os.path.realpath(path): path for path in left_downloads()}
    if not paths:
        return Check("leftovers", True, "none")
    for path in paths.values():
        name = path.name[1:].rsplit(".", 2)[0]
        if path.suffix == ".old" and not path.with_name(name).exists():
            fix = f"mv -- {shlex.quote(str(path))} {shlex.quote(str(path.with_name(name)))}"
            return Check("leftovers", False, f"{path} is {name}, which a killed run replaced", fix)
    sizes = {path: folder_size(path) for path in paths.values()}
    parts = ", ".join(f"{path} {size_in_words(size)}" for path, size in sizes.items())
    names = shlex.join(map(str, paths.values()))
    return Check("leftovers", True, f"{parts}, of killed runs; remove them: rm -r -- {names}")


def _self_test(reference: str) -> Check:
    """Embed texts alone and together, and compare the vectors."""
    import numpy as np

    name = f"self-test of {reference}"
    started = time.perf_counter()
    try:
        path = resolve(reference, download=False)
        engine = open_engine(path)
        encoder = engine.encoder
        loaded = time.perf_counter()
        alone = np.concatenate([_embed(encoder, [text]) for text in SELF_TEST_TEXTS])
        together = _embed(encoder, SELF_TEST_TEXTS)
    except (GembError, OSError) as error:
        return Check(name, False, str(error), "name another model with -m")
    finished = time.perf_counter()
    count = len(SELF_TEST_TEXTS)
    fault = _fault(alone, together, encoder.profile.dim)
    detail = fault or (
        f"{engine.name}: loaded in {(loaded - started) * 1e3:.0f} ms, "
        f"{2 * count} texts in {(finished - loaded) * 1e3:.0f} ms, {count} together as alone "
        f"within {np.abs(alone - together).max():.0e}, "
        f"similarity {float(alone[0] @ alone[1]):.3f}"
    )
    fix = f"the backend '{engine.backend.name}' computes wrongly here: install it again"
    return Check(name, not fault, detail, fix)


def _embed(encoder: Encoder, texts: tuple[str, ...] | list[str]) -> NDArray[np.float32]:
    return encoder.encode(list(map(encoder.profile.cut, encoder.tokenize(texts))))


def _fault(alone: NDArray[np.float32], together: NDArray[np.float32], dim: int) -> str:
    """Return what is wrong with the vectors, float32 [texts, dim] each; empty if nothing is."""
    import numpy as np

    count = len(SELF_TEST_TEXTS)
    for vectors in (alone, together):
        if vectors.shape != (count, dim):
            return f"vectors of shape {vectors.shape} where {count} of {dim} were asked for"
    if not (np.isfinite(alone).all() and np.isfinite(together).all()):
        return "the vectors are not finite"
    lengths = np.linalg.norm(np.concatenate([alone, together]), axis=1)
    if np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
        return f"the vectors are not unit vectors: length {lengths.max():.3f}"
    apart = float(np.abs(alone - together).max())
    if apart > BATCH_TOLERANCE:
        return f"a text's vector depends on its neighbours: components differ by {apart:.1e}"
    if np.abs(alone[0] - alone[1]).max() <= BATCH_TOLERANCE:
        return "two different texts have one vector"
    return ""
