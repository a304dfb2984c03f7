"""LoRA adapters as PEFT saves them, merged into the weights that they were trained on.

    adapter_config.json          alpha, rank, and which modules the adapter changes
    adapter_model.safetensors    base_model.model.layers.0.self_attn.q_proj.lora_A.weight ...

The folder holds the weights of the base, too, or `base_model_name_or_path` names them: a folder
(beside what is in the adapter's folder, or in the working folder), or a model in the hub's cache.
Every file that the adapter's folder lacks is the base's.

Merged is W + s B A, with s = alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732); of the token
table W + s (B A)^T. Sources: LoRA, arXiv 2106.09685; PEFT `tuners/lora/layer.py`
(`get_delta_weight`), `utils/save_and_load.py` (names of tensors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import Missing, UsageError
from gemb.io.notes import note, warn
from gemb.io.text import visible
from gemb.models.config import read_json, whole_number
from gemb.models.hub_cache import ADAPTER
from gemb.models.hub_cache import WEIGHTS as _WHOLE
from gemb.models.references import resolve
from gemb.models.safetensors import StoredTensor, not_finite, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG, WEIGHTS = ADAPTER
_MERGE = "merge it with PEFT: merge_and_unload()"
_ROWS = 4096  # of a merged tensor in memory at a time, in 64 bits

# What an adapter's settings may say without changing the sum above. All other keys must be empty.
_HARMLESS = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("base_model_class", "parent_library", "revision", "inference_mode", "runtime_config"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "ensure_weight_tying", "qalora_group_size"),
    # Of training, or of the beginning that `init_lora_weights` names.
    *("lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
    "lora_ga_config",
)
# Ways to begin that leave the base's weights as they are; others change those, too.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_FEATURES = {"use_dora": "DoRA", "use_qalora": "QA-LoRA", "bias": "biases", "lora_bias": "biases"}

_PREFIX = "base_model.model."
# What stands before `layers.0...` where a language model, or a sentence-transformers model, was
# wrapped; and that model's dense layers.
_WRAPPERS = re.compile(r"^(0\.)?((auto_|language_)?model\.)*")
_DENSE = {"2.linear": "2_Dense.linear", "3.linear": "3_Dense.linear"}
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|base_layer)"
    r"(\.weight)?"
)
_LONGEST_NAME = 256  # of a tensor: a stranger's expressions are held against it
_Patterns = list[tuple[re.Pattern[str], float]]
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds an adapter."""
    return (folder / CONFIG).is_file()


def check_config(folder: Path) -> None:
    """Refuse the weights of an adapter without its settings, which would be passed over.

    Raises:
        UsageError: it is so.
    """
    if (folder / WEIGHTS).is_file() and not is_adapter(folder):
        raise UsageError(
            f"{folder}: {WEIGHTS} without {CONFIG}: fetch that, or move the adapter elsewhere"
        )


def has_weights(folder: Path) -> bool:
    """Return whether the folder holds a model's weights, or says where they are."""
    return any((folder / name).is_file() for name in _WHOLE)


def file_of(folder: Path, name: str) -> Path:
    """Return where a file of a model folder is: in the folder, or in its adapter's base.

    config.json goes with the weights, as in transformers.

    Raises:
        UsageError: the adapter's settings are broken, or its base is no model folder.
        Missing: its base is not here.
    """
    own = folder / name
    is_whole = has_weights(folder) or not is_adapter(folder)
    if is_whole or (own.exists() and name != "config.json"):
        return own
    return base_of(folder) / name


def base_of(folder: Path) -> Path:
    """Return the folder of the weights: the folder itself, or that of the base its adapter names.

    Raises:
        UsageError: the adapter's settings are broken, or its base is no model folder.
        Missing: its base is not here.
    """
    if has_weights(folder) or not is_adapter(folder):
        return folder
    path = folder / CONFIG
    raw = read_json(path)
    name, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"{path}: base_model_name_or_path names no base, and the folder has no {_WHOLE[0]}; "
            "put the base's files beside the adapter"
        )
    base = folder / name
    pinned = f"{name}@{revision}" if isinstance(revision, str) and revision != "main" else name
    try:
        if not base.is_dir() or base.samefile(folder):
            base = resolve(name if Path(name).is_dir() else pinned, download=False)
    except (Missing, UsageError, OSError) as error:
        raise Missing(
            f"{path}: the adapter's base is not here: {error}; or put its files beside the adapter"
        ) from None
    if not has_weights(base) or is_adapter(base):
        what = "an adapter itself" if is_adapter(base) else "no model folder with weights"
        raise UsageError(f"{path}: the adapter's base {base} is {what}")
    return base


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A tensor of the base with the adapter's change: float32, whatever the two are stored as."""

    base: StoredTensor
    change: tuple[StoredTensor, StoredTensor]  # of its rows [rows, r], and columns [r, columns]
    scale: float
    is_transposed: bool  # of the token table: the factors are stored as [r, rows], [columns, r]

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """What is read from files."""
        return (self.base, *self.change)

    def float32(self, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Return its values, or its rows begin:end, float32; summed in 64 bits, rounded once.

        Raises:
            UsageError: the adapter holds numbers that are not finite.
        """
        import numpy as np

        rows = range(self.shape[0])[begin:end]
        values = np.array(self.base.float32(begin, end))
        factors = [factor.float32() for factor in self.change]
        if not all(np.isfinite(factor).all() for factor in factors):
            raise not_finite(self.change[0].path, "the adapter")
        for start in range(rows.start, rows.stop, _ROWS):
            stop = min(start + _ROWS, rows.stop)
            part = values[start - rows.start : stop - rows.start]
            part[:] = part + self.delta(start, stop, *factors)
        return values

    def delta(
        self, begin: int, end: int, rows: NDArray[np.float32], columns: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return what the adapter adds to the rows begin:end; rows, columns: `change` as read."""
        import numpy as np

        if self.is_transposed:
            rows, columns = rows.T, columns.T
        product = rows[begin:end].astype(np.float64) @ columns.astype(np.float64)
        return self.scale * product

    def raw(self) -> NDArray[np.uint8]:
        """Return its bytes, uint8 [size_bytes]."""
        import numpy as np

        return np.ascontiguousarray(self.float32()).reshape(-1).view(np.uint8)


def merged(folder: Path, base: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a folder with the change that its adapter makes to them.

    Args:
        folder: of the adapter.
        base: the tensors without it, by their names in a checkpoint.

    Raises:
        UsageError: the adapter is broken, of another kind, of another model, or incomplete.
    """
    path = folder / CONFIG
    config = read_json(path)
    _check_kind(path, config)
    adapter = _Adapter(path, config, base)
    tensors = adapter.merged(_stored(folder))
    note(
        f"{folder}: its LoRA adapter ({adapter.in_words()}) is merged into the weights of "
        f"{base_of(folder)}",
        once=True,
    )
    return tensors


def adapter_in_words(folder: Path) -> str:
    """Return `LoRA, rank 16, of BASE`; empty where the folder holds no adapter."""
    if not is_adapter(folder):
        return ""
    config = read_json(folder / CONFIG)
    kind = "rsLoRA" if config.get("use_rslora") else "LoRA"
    return f"{kind}, rank {config.get('r', 8)}, of {base_of(folder)}"


def _stored(folder: Path) -> dict[str, StoredTensor]:
    path = folder / WEIGHTS
    if path.is_file():
        return read_header(path)
    pickled = folder / "adapter_model.bin"
    if pickled.is_file():
        raise UsageError(
            f"{pickled}: a pickle, which gemb does not read; load the adapter with PEFT and "
            f"save it again, as {WEIGHTS}"
        )
    raise UsageError(f"{path}: missing, and {CONFIG} says that there is an adapter")


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose change is another one than W + s B A."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UsageError(f"{path}: peft_type {kind!r}; gemb merges LoRA alone; {_MERGE}")
    beginning = config.get("init_lora_weights")
    if beginning not in _PLAIN_BEGINNINGS:
        raise UsageError(
            f"{path}: init_lora_weights {beginning!r} changes the base's weights, too; {_MERGE}"
        )
    for key, value in config.items():
        is_empty = not value or (key == "bias" and value == "none")
        if key not in _HARMLESS and not is_empty:
            feature = f" ({_FEATURES[key]})" if key in _FEATURES else ""
            raise UsageError(
                f"{path}: {key} is {value!r}{feature}, which gemb does not merge; {_MERGE}"
            )
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool | None):
            raise UsageError(f"{path}: {key} must be true or false, not {config[key]!r}")


class _Adapter:
    """The settings of an adapter, and the tensors that it changes."""

    def __init__(
        self, path: Path, config: Mapping[str, Any], base: Mapping[str, StoredTensor]
    ) -> None:
        self.path = path
        self.config = config
        self.base = base
        self.rank = whole_number(path, {"r": 8, **config}, "r")
        self.alpha = _number(path, "lora_alpha", config.get("lora_alpha", 8))
        self.ranks = _pattern(path, config, "rank_pattern")
        self.alphas = _pattern(path, config, "alpha_pattern")
        self.targets = _names(path, config, "target_modules")
        self.excluded = _names(path, config, "exclude_modules")
        self.replaced = _names(path, config, "modules_to_save") or ()
        layers = config.get("layers_to_transform")
        self.layers = [layers] if isinstance(layers, int) else layers or None
        if self.layers is not None and not all(isinstance(n, int) for n in self.layers):
            raise UsageError(f"{path}: layers_to_transform must be numbers, not {layers!r}")
        self.changed = 0
        self.whole: set[str] = set()  # modules that are replaced

    def in_words(self) -> str:
        count = f"{self.changed} matri{'ces' if self.changed != 1 else 'x'}"
        return f"rank {self.rank}, {count}"

    def merged(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Return the base's tensors, those that the adapter changes or replaces exchanged."""
        tensors = dict(self.base)
        modules: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in stored.items():
            if not name.startswith(_PREFIX) or len(name) > _LONGEST_NAME:
                raise self._unknown(visible(name, 80))
            part = _PART.fullmatch(name.removeprefix(_PREFIX))
            if part is None or part["part"] == "base_layer":
                self._replace(tensors, name, tensor)
            else:
                modules.setdefault(part["module"], {})[part["part"][-1]] = tensor
        left_out = [module for module in modules if not self._is_target(module)]
        for module in left_out:
            del modules[module]
        if left_out:
            warn(
                f"{self.path}: it leaves out {len(left_out)} modules whose tensors the adapter "
                f"holds, {left_out[0]} first; they are not merged, as in PEFT"
            )
        for module, parts in modules.items():
            name = f"{self._name(module)}.weight"
            if name not in tensors and name == "lm_head.weight":  # of next tokens: no vector's
                continue
            if name not in tensors:
                raise self._unknown(module)
            tensors[name] = self._change(module, tensors[name], parts)
        self._check_complete(modules)
        self.changed = len(modules)
        return tensors

    def _replace(self, tensors: dict[str, StoredTensor], name: str, tensor: StoredTensor) -> None:
        """Take a whole tensor of the adapter's file: of a module that was trained whole."""
        module = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        known = self._name(module)
        if known == "lm_head.weight":  # tied: the token table again
            return
        if known not in tensors:
            raise self._unknown(name)
        if tensor.shape != tensors[known].shape:
            raise UsageError(
                f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, the base's "
                f"{list(tensors[known].shape)}: the adapter is of another model"
            )
        tensors[known] = tensor
        self.whole.add(known.rpartition(".")[0])

    def _change(
        self, module: str, base: StoredTensor, parts: Mapping[str, StoredTensor]
    ) -> MergedTensor:
        if parts.keys() != {"A", "B"}:
            lacking = "B" if "A" in parts else "A"
            raise UsageError(
                f"{self.path.parent / WEIGHTS}: module {module} has no lora_{lacking}; fetch the "
                "adapter again"
            )
        a, b = parts["A"], parts["B"]
        rank = _matching(self.ranks, module, self.rank)
        is_table = self._name(module) == "embed_tokens"
        rows, columns = base.shape if len(base.shape) == 2 else (0, 0)
        expected = ((rank, rows), (columns, rank)) if is_table else ((rank, columns), (rows, rank))
        if (a.shape, b.shape) != expected:
            raise UsageError(
                f"{a.path}: module {module} has lora_A {list(a.shape)} and lora_B "
                f"{list(b.shape)}; rank {rank:g} and the base's weights make them "
                f"{list(map(int, expected[0]))} and {list(map(int, expected[1]))}"
            )
        alpha = _matching(self.alphas, module, self.alpha)
        return MergedTensor(
            path=base.path,
            dtype="F32",
            shape=base.shape,
            offset=base.offset,
            base=base,
            change=(a, b) if is_table else (b, a),
            scale=alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank),
            is_transposed=is_table,
        )

    def _name(self, module: str) -> str:
        """Return a checkpoint's name of a module, or of its weight."""
        for wrapped, name in _DENSE.items():
            if module.startswith(wrapped):
                return name + module.removeprefix(wrapped)
        return _WRAPPERS.sub("", module, count=1)

    def _is_target(self, module: str) -> bool:
        """Return whether the settings let the adapter change the module.

        A single text is a regular expression of a stranger's: it is not run, and lets all pass.
        """
        if isinstance(self.excluded, tuple) and _ends(module, self.excluded):
            return False
        if isinstance(self.targets, tuple) and not _ends(module, self.targets):
            return False
        layer = _LAYER.search(module)
        return self.layers is None or (layer is not None and int(layer[1]) in self.layers)

    def _check_complete(self, modules: Iterable[str]) -> None:
        """Refuse an adapter that changes nothing, or a target in some layers alone."""
        changed = {self._name(module) for module in modules}
        if not changed and not self.replaced:
            raise UsageError(
                f"{self.path.parent / WEIGHTS}: it holds no tensor of LoRA; fetch the adapter again"
            )
        present = changed | self.whole
        modules_of_base = {name.rpartition(".")[0] for name in self.base}
        for name in self.replaced if isinstance(self.replaced, tuple) else ():
            saved = {module for module in modules_of_base if _ends(module, (name,))}
            if saved and not saved & present:
                raise self._incomplete(name, "modules_to_save")
        if not isinstance(self.targets, tuple) or isinstance(self.excluded, str):
            return
        used = {target for target in self.targets if any(_ends(m, (target,)) for m in changed)}
        for name, tensor in self.base.items():
            module = name.removesuffix(".weight")
            expected = len(tensor.shape) == 2 and _ends(module, used) and self._is_target(module)
            whole = isinstance(self.replaced, tuple) and _ends(module, self.replaced)
            if expected and not whole and module not in changed:
                raise self._incomplete(module, "target_modules")

    def _incomplete(self, module: str, key: str) -> UsageError:
        return UsageError(
            f"{self.path.parent / WEIGHTS}: no tensors of {module}, which {key} names; "
            "fetch the adapter again"
        )

    def _unknown(self, name: str) -> UsageError:
        return UsageError(
            f"{self.path.parent / WEIGHTS}: {name} is no part of this model; the adapter is of "
            f"another, or of a kind that gemb does not merge: {_MERGE}"
        )


def _ends(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _names(path: Path, config: Mapping[str, Any], key: str) -> tuple[str, ...] | str | None:
    """Return names of modules, a regular expression, or None where the key is absent."""
    value = config.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{path}: {key} must be a list of names, not {value!r}")
    return tuple(value)


def _number(path: Path, key: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(str(value))):
        raise UsageError(f"{path}: {key} must be a number, not {value!r}")
    return float(str(value))


def _pattern(
    path: Path, config: Mapping[str, Any], key: str
) -> list[tuple[re.Pattern[str], float]]:
    """Return the modules of another rank or alpha: PEFT reads each key as a regular expression."""
    raw = config.get(key) or {}
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: {key} must map modules to numbers, not {raw!r}")
    patterns: _Patterns = []
    for module, value in raw.items():
        number = _number(path, f"{key} of {module}", value)
        if number <= 0 and key == "rank_pattern":
            raise UsageError(f"{path}: {key} of {module} must be above 0, not {value!r}")
        if not _is_quick(module):
            raise UsageError(f"{path}: {key}: {module!r} is too involved for gemb; {_MERGE}")
        try:
            patterns.append((re.compile(rf"(.*\.)?({module})"), number))
        except re.error as error:
            raise UsageError(f"{path}: {key}: {module!r}: {error}") from error
    return patterns


def _is_quick(expression: str) -> bool:
    """Return whether no module's name makes a stranger's regular expression run for long."""
    # A repeat tries each length of a name, a branch doubles what is tried; nested they multiply.
    tries = 50 ** sum(expression.count(sign) for sign in "*+?{") * 2 ** expression.count("|")
    return len(expression) < 200 and tries < 5000 and not re.search(r"\)[*+?{]|\(\?", expression)


def _matching(patterns: _Patterns, module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.fullmatch(module)), default)


def sources(tensors: Iterable[StoredTensor]) -> Iterator[StoredTensor]:
    """Yield what is read from files for these tensors."""
    for tensor in tensors:
        yield from tensor.sources
