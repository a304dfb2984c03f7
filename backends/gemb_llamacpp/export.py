"""Write a model folder as one GGUF file, tensor by tensor, in this process.

Architecture `gemma-embedding`, as llama.cpp's own converter writes it (`conversion/gemma.py`),
and always with the two dense layers, which that converter leaves out unless told. Norm weights
get the + 1 of Gemma's `x * (1 + w)` here. Every matrix, the token table too, gets the requested
type; quantized blocks come from gguf's quantizers, which are bit-exact to ggml's reference.

A model that was trained for types (`gemb.qat`) has them in the file unless another is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.io.notes import note
from gemb.models.adapter import file_of
from gemb.models.card import in_file, title_of
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import PATTERN
from gemb.models.gguf import KEY_DEFAULT_PROMPT, KEY_WIDTH, check_both_kinds
from gemb.models.gguf_header import F16_REASON
from gemb.models.gguf_keys import ARCHITECTURE, POOLINGS
from gemb.models.qat import GGUF_KEY, Types, file_types, folder_types, in_words, keeps
from gemb.models.safetensors import StoredTensor
from gemb.models.tensors import gguf_name, tensor_class
from gemb.models.tokenizer_json import check_marks, merge_pair, read_tokenizer

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

_FILE_TYPES = {
    "f32": "ALL_F32",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
_ROWS = 4096  # of a tensor in memory at a time

# llama.cpp's `llama_token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_NOT_GEMMAS = "{path}: {fault}; gemb writes GGUF for Gemma's tokenizer alone"


@dataclass(frozen=True)
class _FileTensor:
    """One tensor of the file, and where its numbers come from."""

    name: str  # in the file
    stored: StoredTensor
    type: str  # f32, bf16, q8_0 or q4_0


def export(source: Path, target: Path | None, outtype: str, *, weights: bool = True) -> Types:
    """Write the model folder `source` as the GGUF file `target`, which is overwritten.

    Args:
        source: a sentence-transformers folder of EmbeddingGemma.
        target: the file. It is whole only when this returns. None: only check.
        outtype: f32, bf16, q8_0 or q4_0, of every tensor but the norms, which stay F32; auto: the
            types that the model was trained for, bf16 where it was trained for none.
        weights: False: write the header alone, and make the file as long as it would be.

    Returns:
        The types in the file, by class of tensors.

    Raises:
        UsageError: another outtype, or a folder that such a file cannot hold.
        OSError: the file cannot be written.
    """
    import gguf

    if outtype == "f16":
        raise UsageError(F16_REASON)
    if outtype not in ("auto", *_FILE_TYPES):
        raise UsageError(f"no outtype '{outtype}'; outtypes: auto, {', '.join(_FILE_TYPES)}")
    checkpoint = open_checkpoint(source)
    _check(checkpoint)
    trained = folder_types(source)
    types = file_types(outtype, trained)
    tensors = [
        # A norm has no class of `types`.
        _FileTensor(gguf_name(name), stored, types.get(tensor_class(name), "f32"))
        for name, stored in checkpoint.tensors.items()
    ]
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    _add_metadata(writer, checkpoint, types)
    if keeps(types, trained):
        writer.add_string(GGUF_KEY, json.dumps(trained))
    _add_vocabulary(writer, read_vocabulary(source, checkpoint.config.vocab_size))
    for tensor in tensors:
        _add_tensor(writer, tensor)
    if target is not None:
        change = _Change() if trained and weights else None
        _write(writer, target, tensors, weights, change)
        if change is not None and change.changed:
            _tell(source, outtype, types, trained, change)
    return types


def _check(checkpoint: Checkpoint) -> None:
    """Refuse a model that the file cannot hold."""
    source, config = checkpoint.folder, checkpoint.config
    if checkpoint.pooling not in POOLINGS:
        raise UsageError(
            f"{source}: {checkpoint.pooling} pooling: a GGUF file has no place for it; only "
            f"{', '.join(POOLINGS)} can be exported"
        )
    if config.query_pre_attn_scalar != config.head_dim:
        raise UsageError(
            f"{source}: query_pre_attn_scalar {config.query_pre_attn_scalar:g} is not head_dim "
            f"{config.head_dim}: a gemma-embedding GGUF has no place for it"
        )
    if checkpoint.dim != config.hidden_size:
        raise UsageError(
            f"{source}: vectors of {checkpoint.dim} from a width of {config.hidden_size}: "
            "llama.cpp requires the two to be equal"
        )
    check_both_kinds(source, config.is_sliding)


def _add_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, types: Types) -> None:
    import gguf

    config = checkpoint.config
    writer.add_type("model")
    writer.add_name(title_of(checkpoint.folder))
    changes = [f"Modified from {checkpoint.known_as()} by `gemb export-gguf`."]
    changes += checkpoint.history()
    for key, text in in_file(checkpoint.licence(), "\n".join(changes)).items():
        writer.add_string(key, text)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[types["ffn"]]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(checkpoint.max_tokens)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_freq_base_swa(config.rope_local_theta)
    writer.add_sliding_window(config.sliding_window)
    if config.is_sliding != tuple((i + 1) % PATTERN != 0 for i in range(config.num_hidden_layers)):
        writer.add_sliding_window_pattern(list(config.is_sliding))
    writer.add_pooling_type(gguf.PoolingType(POOLINGS[checkpoint.pooling]))
    for dense, (size_in, size_out) in zip(("dense_2", "dense_3"), checkpoint.dense, strict=True):
        writer.add_dense_features_dims(dense, size_in, size_out)
    writer.add_array("gemb.matryoshka_dims", list(checkpoint.matryoshka_dims))
    if checkpoint.default_dim != checkpoint.dim:
        writer.add_uint32(KEY_WIDTH, checkpoint.default_dim)
    for name, text in checkpoint.prompts.items():
        writer.add_string(f"gemb.prompt.{name}", text)
    if checkpoint.prompts.default:
        writer.add_string(KEY_DEFAULT_PROMPT, checkpoint.prompts.default)


def _add_tensor(writer: gguf.GGUFWriter, tensor: _FileTensor) -> None:
    """Name the tensor in the header."""
    import gguf
    import numpy as np

    stored = tensor.stored
    kind = gguf.GGMLQuantizationType[tensor.type.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if stored.shape[-1] % block:
        raise UsageError(
            f"{stored.path}: tensor {tensor.name} has rows of {stored.shape[-1]} values; "
            f"{tensor.type} packs {block} together, so export with --outtype bf16"
        )
    shape = gguf.quant_shape_to_byte_shape(stored.shape, kind)
    size = int(np.prod(shape))
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)


def _write(
    writer: gguf.GGUFWriter,
    target: Path,
    tensors: Sequence[_FileTensor],
    weights: bool,
    change: _Change | None,
) -> None:
    """Write the file; without weights it has a hole in their place."""
    try:
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None, "the header has just been written"
        (file,) = writer.fout
        if not weights:
            file.truncate(_end(writer, file.tell()))
            return
        for tensor in tensors:
            # Not by the writer's `write_tensor_data`: numpy's `tofile` hides why a write failed.
            file.write(bytes(-file.tell() % writer.data_alignment))
            for block in _blocks(tensor, change):
                file.write(block.data)
    finally:
        writer.close()


def _end(writer: gguf.GGUFWriter, position: int) -> int:
    """Return the length of a file whose header ends at a position."""
    (tensors,) = writer.tensors
    for tensor in tensors.values():
        position += -position % writer.data_alignment + tensor.nbytes
    return position


def _blocks(tensor: _FileTensor, change: _Change | None) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's bytes in the file, some rows at a time, and count what they change."""
    import gguf
    import numpy as np

    stored, where = tensor.stored, f"{tensor.stored.path}: tensor {tensor.name}"
    kind = gguf.GGMLQuantizationType[tensor.type.upper()]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    is_norm = len(stored.shape) == 1
    for begin in range(0, stored.shape[0], _ROWS):
        values = stored.float32(begin, begin + _ROWS)
        if is_norm:
            values = values + np.float32(1)
        if not np.isfinite(values).all():
            raise UsageError(f"{where} holds numbers that are not finite")
        with np.errstate(all="ignore"):  # the scales are looked at below
            packed = gguf.quantize(np.ascontiguousarray(values), kind).view(np.uint8)
        if block > 1:
            scales = packed.reshape(-1, block_bytes)[:, :2].copy().view(np.float16)
            if not np.isfinite(scales).all():
                raise UsageError(
                    f"{where} has numbers too large for {tensor.type}'s fp16 scales; export with "
                    "--outtype bf16"
                )
        if change is not None and not is_norm:
            change.count(values, packed, kind)
        yield np.ascontiguousarray(packed)


@dataclass
class _Change:
    """How far the numbers in the file are from the folder's."""

    numbers: int = 0
    changed: int = 0
    squares: float = 0.0  # of the numbers
    error_squares: float = 0.0  # of the differences

    def count(
        self,
        values: NDArray[np.float32],
        packed: NDArray[np.uint8],
        kind: gguf.GGMLQuantizationType,
    ) -> None:
        """Count some rows and what stands for them in the file."""
        import gguf
        import numpy as np

        difference = gguf.dequantize(packed, kind).reshape(values.shape) - values
        self.numbers += values.size
        self.changed += int(np.count_nonzero(difference))
        self.squares += float(np.vdot(values, values))
        self.error_squares += float(np.vdot(difference, difference))

    def __str__(self) -> str:
        """Return `34.0% of the weights change, by 1.23% of their size (root mean square)`."""
        size = math.sqrt(self.error_squares / (self.squares or 1))
        share = self.changed / max(1, self.numbers)
        return f"{share:.1%} of the weights change, by {size:.2g} of their root mean square"


def _tell(source: Path, outtype: str, types: Types, trained: Types, change: _Change) -> None:
    """Report how far the weights in the file are from the trained ones."""
    if outtype == "auto":
        note(
            f"{source} says that it was trained as {in_words(trained)}, but its weights are others "
            f"now and were rounded again: {change}"
        )
    else:
        note(
            f"{source} was trained as {in_words(trained)}; as {in_words(types)} {change}; without "
            "--outtype they are kept"
        )


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_unk_token_id(vocabulary.unk)
    writer.add_pad_token_id(vocabulary.pad)
    if vocabulary.mask is not None:
        writer.add_mask_token_id(vocabulary.mask)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(False)


@dataclass(frozen=True)
class Vocabulary:
    """What the `tokenizer.ggml.*` arrays hold, by id, and the tokens that have a role."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    pad: int
    eos: int
    bos: int
    unk: int
    mask: int | None


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Return the vocabulary of the folder's tokenizer.json.

    Args:
        folder: the model folder.
        rows: tokens in the embedding table. An added token beyond it is left out: Gemma 3's
            `<image_soft_token>` is one, and a text model has no vector for it.

    Raises:
        UsageError: llama.cpp could not give the same ids as this tokenizer.
    """
    path = file_of(folder, "tokenizer.json")
    raw = read_tokenizer(path)
    check_marks(path, raw)
    model = raw["model"]
    _check_kind(path, raw, model)
    ids: dict[str, int] = model["vocab"]
    added = {token["content"]: token for token in raw["added_tokens"] if token["id"] < rows}
    by_id = {i: token for token, i in ids.items()}
    by_id |= {entry["id"]: token for token, entry in added.items()}
    if len(by_id) != rows or max(by_id) != rows - 1 or len(set(by_id.values())) != rows:
        raise UsageError(f"{path}: {len(by_id)} tokens, but the embedding table has {rows} rows")
    tokens = [by_id[i] for i in range(rows)]
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    if missing:
        raise UsageError(_NOT_GEMMAS.format(path=path, fault=f"no byte token <0x{missing[0]:02X}>"))
    scores = _scores(path, ids, model["merges"])
    roles = {name: _id_of(path, ids, f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
    return Vocabulary(
        tokens=tokens,
        types=[_type(token, added) for token in tokens],
        scores=[scores.get(token, 0.0) for token in tokens],
        mask=ids.get("<mask>"),
        **roles,
    )


def _id_of(path: Path, ids: dict[str, int], token: str) -> int:
    """Return a token's id, or refuse a tokenizer without it."""
    if token not in ids:
        raise UsageError(_NOT_GEMMAS.format(path=path, fault=f"no token {token}"))
    return ids[token]


def _check_kind(path: Path, raw: dict[str, Any], model: dict[str, Any]) -> None:
    normalizer = raw.get("normalizer") or {}
    single = (raw.get("post_processor") or {}).get("single") or []
    around = [next(iter(part.values())).get("id") for part in single]
    wrong = {
        "no byte fallback": not model.get("byte_fallback"),
        "dropout": bool(model.get("dropout")),
        "ignore_merges": bool(model.get("ignore_merges")),
        f"normalizer {normalizer.get('type')}": (
            (normalizer.get("pattern"), normalizer.get("content")) != ({"String": " "}, "▁")
        ),
        f"tokens around a text: {around}": around != ["<bos>", "A", "<eos>"],
        "an added token that takes white space with it": any(
            token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"]
            for token in raw["added_tokens"]
        ),
    }
    for fault, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(_NOT_GEMMAS.format(path=path, fault=fault))


def _type(token: str, added: dict[str, Any]) -> int:
    if token == "<unk>":
        return UNKNOWN
    if token in added:
        return CONTROL if added[token]["special"] else USER_DEFINED
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return NORMAL


def _scores(path: Path, ids: dict[str, int], merges: list[Any]) -> dict[str, float]:
    """Return the score of every token that has a merge, the first to be joined highest.

    transformers runs Gemma's tokenizer as byte-pair encoding: of all neighbours that have a merge,
    the one of the lowest rank joins first. llama.cpp runs it as SentencePiece does: of all
    neighbours whose join is a token, the one of the highest score joins first, the leftmost of
    equals. The two give the same ids where (a) every split of a token into two tokens has a merge,
    and (b) a token's merges stand together, so that ranks of pairs are ranks of tokens. Gemma's
    merges were made so from SentencePiece's scores (transformers `SentencePieceExtractor`). Runs of
    newlines, spaces and tabs had equal scores there, so their merges are interleaved; they get
    equal scores here.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    count: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        token = "".join(merge_pair(merge))
        first.setdefault(token, rank)
        last[token] = rank
        count[token] = count.get(token, 0) + 1
    for token in ids:
        splits = sum(token[:i] in ids and token[i:] in ids for i in range(1, len(token)))
        if splits != count.get(token, 0):
            fault = f"token {token!r} has {splits} splits and {count.get(token, 0)} merges"
            raise UsageError(_NOT_GEMMAS.format(path=path, fault=fault))
    scores: dict[str, float] = {}
    group, end = -1, -1
    for token, rank in first.items():  # in the order of the ranks
        if rank > end:
            group += 1
        end = max(end, last[token])
        scores[token] = -float(group)
    return scores
