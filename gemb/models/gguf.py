"""A GGUF file of EmbeddingGemma: opened, checked and described from its header alone.

llama.cpp aborts the process on some wrong files (unequal widths, a token that occurs twice), dies
later on others (a missing byte token), and gives plausible wrong vectors with others (no dense
layers, no EOS). `open_gguf` refuses them all. Sources: llama.cpp `src/models/gemma-embedding.cpp`
(keys, tensors), `src/llama-model.cpp` and `src/llama-vocab.cpp` (what it asserts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.models.config import PATTERN
from gemb.models.fingerprint import fingerprint
from gemb.models.gguf_header import Array, GgufHeader, Scalar, TensorInfo, read_header, strings
from gemb.models.gguf_keys import ARCHITECTURE, EXPORT, POOLINGS, check_architecture, wrong
from gemb.models.profile import CARD_DIMS, CLOSING_TOKENS, ModelDescription, ModelProfile
from gemb.models.prompts import CARD, ModelPrompts
from gemb.models.qat import GGUF_KEY, gguf_types
from gemb.models.tensors import tensor_class
from gemb.models.token_probe import LONGEST_TOKEN, MARKS, Probe, probe, sampled

KEY_DEFAULT_PROMPT = "gemb.default_prompt_name"
KEY_WIDTH = "gemb.truncate_dim"
MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_MOST = 1 << 20  # of any width, length or count
_FOUND = (2, 3, 4)  # llama.cpp's types of tokens that a text may name: unknown, control, user's
# Role -> its token, in Gemma's vocabulary and in those that are cut from it.
_NAMED = {"bos": b"<bos>", "eos": b"<eos>", "unknown": b"<unk>", "padding": b"<pad>"}


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """The numbers of a checked file; the tensors are not read."""

    header: GgufHeader
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    pooling: str  # mean, first or last
    dense: tuple[tuple[int, int], tuple[int, int]]  # (in, out) of the two dense layers
    is_sliding: tuple[bool, ...]  # by layer
    max_tokens: int
    vocabulary: int
    matryoshka_dims: tuple[int, ...]  # widest first
    default_dim: int  # width of a vector where none is asked for
    prompts: Mapping[str, str]  # the file's own, or the model card's
    probe: Probe | None = None  # what its tokenizer must do; None: it is not run

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense[1][1]

    def profile(self) -> ModelProfile:
        """Return what a caller must know to use the open model."""
        return ModelProfile(
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=self.max_tokens,
            closing_tokens=CLOSING_TOKENS,
            prompts=self.prompts,
            dtype=self.types()["attention"],
            fingerprint=self.fingerprint(),
            default_dim=self.default_dim,
        )

    def description(self) -> ModelDescription:
        """Return what `gemb models show` prints."""
        return ModelDescription(
            path=self.header.path,
            format="gguf",
            architecture=ARCHITECTURE,
            layers=self.layers,
            hidden=self.hidden,
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=self.max_tokens,
            vocabulary=self.vocabulary,
            parameters=sum(math.prod(tensor.shape) for tensor in self.header.tensors.values()),
            pooling=self.pooling,
            dense=self.dense,
            prompts=self.prompts,
            types=self.types(),
            size_bytes=self.header.size_bytes,
            fingerprint=self.fingerprint(),
            licence=str(self.header.metadata.get("general.license", "")),
            trained_types=self.trained_types(),
            default_dim=self.default_dim,
        )

    def types(self) -> dict[str, str]:
        """Return the types in each class of tensors: token_embd, attention, ffn, norm, dense."""
        types: dict[str, set[str]] = {}
        for name, tensor in self.header.tensors.items():
            types.setdefault(tensor_class(name), set()).add(tensor.type)
        return {kind: "+".join(sorted(names)) for kind, names in types.items()}

    def trained_types(self) -> dict[str, str]:
        """Return the types that the file was trained for, as `gemb.models.qat.gguf_types`."""
        return gguf_types(self.types(), self.header.metadata.get(GGUF_KEY), self.header.path)

    def fingerprint(self) -> str:
        """Return 16 hex digits (`gemb.models.fingerprint`); names, `general.*`, are left out."""
        header = self.header
        parts = []
        with header.path.open("rb") as file:
            for key, value in sorted(header.metadata.items()):
                if key.startswith("general."):
                    continue
                parts.append(key.encode())
                if isinstance(value, Array):
                    file.seek(value.begin)
                    parts.append(file.read(value.end - value.begin))
                else:
                    parts.append(repr(value).encode())
        tensors = sorted(header.tensors.values(), key=lambda tensor: tensor.name)
        return fingerprint(parts, ((header.path, t.offset, t.size_bytes) for t in tensors))


def open_gguf(path: Path) -> GgufModel:
    """Return the checked file.

    Raises:
        UsageError: it is broken, no EmbeddingGemma, or one that llama.cpp would compute wrongly.
    """
    header = read_header(path)
    check_architecture(header)
    layers = number(header, "block_count", most=MOST_LAYERS)
    hidden = number(header, "embedding_length")
    middle = number(header, "dense_2_feat_out", optional=True)
    heads = number(header, "attention.head_count")
    kv_heads = number(header, "attention.head_count_kv")
    head_dim = number(header, "attention.key_length")
    if heads % kv_heads or head_dim % 2:
        raise wrong(header, f"{heads} heads of {head_dim} on {kv_heads} key heads")
    equal(header, "attention.value_length", head_dim)
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        equal(header, key, head_dim, optional=True)
    window(header)
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa"):
        positive(header, key)
    is_sliding = pattern(header, layers)
    check_both_kinds(path, is_sliding)
    ids = check_tokenizer(header)
    equal(header, "vocab_size", len(ids), optional=True)
    model = GgufModel(
        header=header,
        layers=layers,
        hidden=hidden,
        feed_forward=number(header, "feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pooling=pooling(header),
        dense=((hidden, middle), (middle, hidden)),
        is_sliding=is_sliding,
        max_tokens=number(header, "context_length"),
        vocabulary=len(ids),
        matryoshka_dims=matryoshka(header, hidden),
        default_dim=default_dim(header, hidden),
        prompts=_prompts(header),
        probe=_probe(path, ids),
    )
    check_tensors(header, hidden, middle, expected_shapes(model))
    return model


def _probe(path: Path, ids: Mapping[bytes, int]) -> Probe:
    tokens = list(ids)
    samples = [tokens[i].decode("utf-8", "replace") for i in sampled(len(tokens))]
    return probe(path, lambda token: ids.get(token.encode()), samples)


def _prompts(header: GgufHeader) -> ModelPrompts:
    own = {
        key.removeprefix("gemb.prompt."): str(prompt)
        for key, prompt in header.metadata.items()
        if key.startswith("gemb.prompt.")
    }
    model = str(header.path)
    if not own:
        card = {task: prompt for task, prompt in CARD.items() if prompt}
        return ModelPrompts(card, model=model, are_own=False)
    default = header.metadata.get(KEY_DEFAULT_PROMPT, "")
    return ModelPrompts(own, default=str(default), model=model)


def expected_shapes(model: GgufModel) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor, the innermost dimension first."""
    D, F, E = model.hidden, model.feed_forward, model.head_dim
    H, K = model.heads, model.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (D, model.vocabulary),
        "output_norm": (D,),
        "dense_2": model.dense[0],
        "dense_3": model.dense[1],
    }
    layer = {
        "attn_norm": (D,),
        "attn_q": (D, H * E),
        "attn_k": (D, K * E),
        "attn_v": (D, K * E),
        "attn_output": (H * E, D),
        "attn_q_norm": (E,),
        "attn_k_norm": (E,),
        "post_attention_norm": (D,),
        "ffn_norm": (D,),
        "ffn_gate": (D, F),
        "ffn_up": (D, F),
        "ffn_down": (F, D),
        "post_ffw_norm": (D,),
    }
    for i in range(model.layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _get(header: GgufHeader, name: str) -> tuple[Scalar | Array | None, str]:
    key = f"{ARCHITECTURE}.{name}"
    return header.metadata.get(key), header.types.get(key, "absent")


def number(header: GgufHeader, name: str, *, most: int = _MOST, optional: bool = False) -> int:
    """Return a positive whole number, or 0 where it is optional and absent."""
    value, kind = _get(header, name)
    if value is None and optional:
        return 0
    if kind != "uint32" or not isinstance(value, int) or not 0 < value <= most:  # as llama.cpp
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind})")
    return value


def window(header: GgufHeader) -> int:
    """Return the sliding window, both sides together, which is even."""
    value = number(header, "attention.sliding_window")
    if value % 2:
        # transformers before its PR 47940 halved it at each save, and a converter took it over.
        raise wrong(header, f"the sliding window is {value}, an odd number")
    return value


def equal(header: GgufHeader, name: str, right: int, *, optional: bool = False) -> None:
    """Refuse a file whose key has another value."""
    value, kind = _get(header, name)
    if value is None and optional:
        return
    if kind != "uint32" or value != right:
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind}), not {right}")


def pooling(header: GgufHeader) -> str:
    """Return how the tokens' states become one, as a recipe names it."""
    value, kind = _get(header, "pooling_type")
    for name, code in POOLINGS.items():
        if kind == "uint32" and value == code:
            return name
    right = ", ".join(f"{code} ({name})" for name, code in POOLINGS.items())
    raise wrong(header, f"{ARCHITECTURE}.pooling_type is {_show(value)} ({kind}), none of {right}")


def positive(header: GgufHeader, name: str) -> None:
    """Refuse a file whose key is no finite float above zero."""
    value, kind = _get(header, name)
    if name == "rope.freq_base_swa" and value is None:
        return  # llama.cpp's default is EmbeddingGemma's 10,000
    if kind != "float32" or not isinstance(value, float) or not 0 < value < math.inf:
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind})")


def _show(value: object) -> str:
    return f"an array of {value.length}" if isinstance(value, Array) else repr(value)


def pattern(header: GgufHeader, layers: int) -> tuple[bool, ...]:
    """Return which layers slide: an array of flags, or a period whose last layer is global."""
    value, kind = _get(header, "attention.sliding_window_pattern")
    if isinstance(value, Array):
        if value.type not in ("bool", "uint32", "int32") or value.length != layers:
            raise wrong(header, f"the window pattern has {value.length} {value.type} items")
        return tuple(bool(flag) for flag in value.values or ())
    if value is None:
        value = PATTERN
    elif kind != "uint32":
        raise wrong(header, f"the window pattern is {value!r} ({kind})")
    period = int(value)
    return tuple(period == 0 or i % period < period - 1 for i in range(layers))


def check_both_kinds(model: Path, is_sliding: tuple[bool, ...]) -> None:
    """Refuse a model without a sliding or without a global layer.

    llama.cpp fills the mask of either kind whether or not a layer uses it, and aborts where it has
    no memory (`llm_graph_input_attn_no_cache::set_input`).
    """
    if len(set(is_sliding)) < 2:
        kind, other = ("sliding", "global") if is_sliding[0] else ("global", "sliding")
        raise UsageError(
            f"{model}: its attention is {kind} in every layer ({len(is_sliding)}), and "
            f"llama.cpp aborts on that; cut the model again and keep a {other} layer, too"
        )


def matryoshka(header: GgufHeader, dim: int) -> tuple[int, ...]:
    """Return the trained widths, widest first: the file's own, or the model card's."""
    array = header.metadata.get("gemb.matryoshka_dims")
    default = default_dim(header, dim)
    if array is None:
        known = CARD_DIMS if dim == CARD_DIMS[0] else (dim,)
        return tuple(sorted({*known, default}, reverse=True))
    dims = array.values if isinstance(array, Array) else None
    if not dims or dims[0] != dim or not all(type(d) is int and 0 < d <= dim for d in dims):
        raise wrong(header, f"gemb.matryoshka_dims is {dims!r} of {dim}")
    return tuple(sorted({*(int(d) for d in dims), default}, reverse=True))


def default_dim(header: GgufHeader, dim: int) -> int:
    """Return the width of a vector where none is asked for: that of its folder's `truncate_dim`."""
    value = header.metadata.get(KEY_WIDTH, dim)
    if header.types.get(KEY_WIDTH, "uint32") != "uint32" or not 0 < int(str(value)) <= dim:
        raise wrong(header, f"{KEY_WIDTH} is {_show(value)} of {dim}")
    return int(str(value))


def check_tokenizer(header: GgufHeader) -> dict[bytes, int]:
    """Return the id of each token, after checking what llama.cpp's tokenizer trusts."""
    data = header.metadata
    _check_tokenizer_kind(header)
    tokens = strings(header, "tokenizer.ggml.tokens")
    for key, kind in (("scores", "float32"), ("token_type", "int32")):
        array = data.get(f"tokenizer.ggml.{key}")
        if not isinstance(array, Array) or (array.type, array.length) != (kind, len(tokens)):
            raise wrong(header, f"tokenizer.ggml.{key} is not one {kind} for each token")
    _check_scores(header)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    _check_tokens(header, tokens, ids)
    _check_marks(header, ids)
    _check_roles(header, tokens)
    return ids


def _check_tokenizer_kind(header: GgufHeader) -> None:
    data = header.metadata
    if (kind := data.get("tokenizer.ggml.model")) != "llama":
        raise UsageError(
            f"{header.path}: tokenizer {visible(str(kind), 80)}: Gemma's is 'llama' "
            f"(SentencePiece), and another splits texts differently; {EXPORT}"
        )
    for key, right in (
        ("add_bos_token", True),
        ("add_eos_token", True),
        ("add_space_prefix", False),
    ):
        if data.get(f"tokenizer.ggml.{key}") is not right:
            raise UsageError(
                f"{header.path}: tokenizer.ggml.{key} is {data.get(f'tokenizer.ggml.{key}')}, and "
                f"this model was trained with {right}: its vectors would be wrong; {EXPORT}"
            )
    for key in ("remove_extra_whitespaces", "add_sep_token"):
        if data.get(f"tokenizer.ggml.{key}", False) is not False:
            raise wrong(header, f"tokenizer.ggml.{key} is set")


def _bytes_of(header: GgufHeader, key: str) -> memoryview:
    """Return the bytes of an array, which is there."""
    array = header.metadata[key]
    assert isinstance(array, Array), "it has been checked"
    with header.path.open("rb") as file:
        file.seek(array.begin)
        return memoryview(file.read(array.end - array.begin))


def _check_scores(header: GgufHeader) -> None:
    """Refuse scores by which llama.cpp would not find the tokens that the merges lead to."""
    scores = _bytes_of(header, "tokenizer.ggml.scores").cast("f")
    if not all(map(math.isfinite, scores)):
        raise wrong(header, "a token has a score that is no number")
    if len(set(scores)) == 1:
        raise wrong(header, "all tokens have one score")


def _check_marks(header: GgufHeader, ids: Mapping[bytes, int]) -> None:
    """Refuse a file in whose texts `<eos>` or `<h1>` would not be found as they stand."""
    types = _bytes_of(header, "tokenizer.ggml.token_type").cast("i")
    for mark in MARKS:
        number = ids.get(mark.encode())
        if number is not None and types[number] not in _FOUND:
            raise wrong(header, f"the token {mark} has the type {types[number]}, a word's")


def _check_roles(header: GgufHeader, tokens: list[bytes]) -> None:
    data = header.metadata
    for name, value in data.items():
        if name.startswith("tokenizer.ggml.") and name.endswith("_token_id"):
            is_token = isinstance(value, int) and header.types[name] == "uint32"
            if not is_token or not 0 <= int(str(value)) < len(tokens):
                raise wrong(header, f"{name} is {_show(value)} of {len(tokens)} tokens")
    for role, token in _NAMED.items():
        name = f"tokenizer.ggml.{role}_token_id"
        token_id = data.get(name)
        if token_id is None and role not in ("bos", "eos"):
            continue
        if not isinstance(token_id, int) or tokens[token_id] != token:
            raise wrong(header, f"{name} is {_show(token_id)}, which is not {token.decode()}")


def _check_tokens(header: GgufHeader, tokens: list[bytes], ids: Mapping[bytes, int]) -> None:
    if b"".join(tokens).count(b"\0"):
        raise wrong(header, "a token holds a NUL byte")  # its end, to llama.cpp
    if len(ids) != len(tokens):
        raise wrong(header, f"{len(tokens) - len(ids)} tokens occur twice")
    if (longest := max(map(len, tokens))) > LONGEST_TOKEN:
        raise wrong(header, f"a token of {longest} bytes; a right one has {LONGEST_TOKEN} at most")
    missing = [byte for byte in range(256) if b"<0x%02X>" % byte not in ids]
    if missing:
        raise wrong(header, f"{len(missing)} byte tokens are missing, <0x{missing[0]:02X}> first")


def check_tensors(
    header: GgufHeader, hidden: int, middle: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse other tensors than these, other types than llama.cpp takes, or no dense layers."""
    tensors = header.tensors
    absent = [name for name in ("dense_2.weight", "dense_3.weight") if name not in tensors]
    if absent or not middle:
        raise UsageError(
            f"{header.path}: its dense layers (dense_2, dense_3) are missing, as in many published "
            f"files, and its vectors would be wrong; {EXPORT}"
        )
    equal(header, "dense_2_feat_in", hidden)
    equal(header, "dense_3_feat_in", middle)
    equal(header, "dense_3_feat_out", hidden)
    check_shapes(header, shapes)


def check_shapes(header: GgufHeader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse other tensors than these, and other types than llama.cpp takes."""
    for name, shape in shapes.items():
        if name not in header.tensors:
            raise wrong(header, f"tensor {name} is missing")
        _check_tensor(header, header.tensors[name], shape)
    if unknown := header.tensors.keys() - shapes.keys():
        raise wrong(header, f"tensor {min(unknown)} is not this model's")


def _check_tensor(header: GgufHeader, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise wrong(header, f"tensor {tensor.name}: shape {list(tensor.shape)}, not {list(shape)}")
    if len(shape) == 1 and tensor.type != "f32":
        raise wrong(header, f"tensor {tensor.name} is {tensor.type}; norms are f32")
