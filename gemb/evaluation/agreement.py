"""How far two models, or two files of vectors, agree.

The cosine of each text's two vectors measures whether the values are the same; the agreement of
ranks measures whether a search would return the same. Failed rows (NaN) are counted and left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Doubles, Vectors
from gemb.embedding.vectors import are_units
from gemb.errors import NegativeAnswer
from gemb.models.profile import cut_ids
from gemb.models.prompts import for_task

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder

NEIGHBOURS = 10
RANKED_ROWS = 2000  # of more rows than this, as many evenly spaced ones are ranked: it is quadratic
TIE = 1e-6  # similarities nearer than this are equal: float32 cosines of one text's copies differ
BATCH_TOKENS = 4096

LENGTH_BANDS = ((16, "1-16 tokens"), (128, "17-128 tokens"), (512, "129-512 tokens"))
LONGEST_BAND = "over 512 tokens"

# The least cosine between two correct programs with weights or arithmetic of this type, on
# `VERIFICATION_TEXTS`. With the real EmbeddingGemma-300M, against PyTorch in fp32: PyTorch in
# bf16 has 0.99901 at least (forty-eight zeros; 0.99987 is next) and 0.99995 in the mean; a lost BOS
# has 0.714 and 0.940, a lost EOS 0.613 and 0.810. llama.cpp has with bf16 0.99935 and 0.99997, with
# q8_0 0.99716 and 0.99936, with q4_0 0.876 and 0.954, and with q4_0 of a cut vocabulary 0.857 and
# 0.935; the least are Hebrew and Russian (English web queries: 0.967 and 0.980). Q6_K of a smaller
# model is eight times as far away as its q8_0.
BARS: dict[str, float] = {
    "f32": 0.99999,
    "bf16": 0.998,
    "q8_0": 0.995,
    "q6_k": 0.96,
    "q4_0": 0.8,
}
DEFAULT_BAR = 0.99  # of a type not named here

# Of files of vectors, which do not say what arithmetic made them: fp32 and bf16 weights of one
# model differ by about 2e-5 on ordinary lines. Rounding to int8 moves a component by its last
# place, and one sign bit of 768 that flips costs 2 / 768.
STORED_BARS: dict[str, float] = {"f32": 0.9999, "f16": 0.9999, "int8": 0.999, "ubinary": 0.98}


@dataclass(frozen=True, kw_only=True)
class TextGroup:
    """Cosines of the texts of one length band or script."""

    name: str
    count: int
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two sides agree. Cosines are of a text's two vectors, one from each side."""

    count: int  # rows compared
    min_cosine: float
    mean_cosine: float
    worst_row: int  # 0-based; the row of min_cosine
    worst_text: str  # empty where the texts are not known
    rank_agreement: float  # 0 to 1: mean share of the ten nearest rows that both sides have
    spearman: float  # -1 to 1: rank correlation of all pairwise similarities
    one_failed: int  # rows that failed on one side alone
    both_failed: int  # rows that failed on both sides
    # by length, by script
    groups: Mapping[str, tuple[TextGroup, ...]] = field(default_factory=dict)


def compare(a: Encoder, b: Encoder, texts: Sequence[str], *, task: str = "none") -> Agreement:
    """Return how far two open models agree on these texts, each with its own prompt of the task.

    A text longer than the shorter of the two contexts is cut to it for both models. The closing
    tokens stay, so both models see the same tokens.

    Raises:
        NegativeAnswer: their vectors have different widths.
    """
    if a.profile.dim != b.profile.dim:
        raise NegativeAnswer(f"the models differ: vectors of {a.profile.dim} and {b.profile.dim}")
    limit = min(a.profile.max_tokens, b.profile.max_tokens)
    ids_a, ids_b = (prompted_ids(model, texts, task, limit) for model in (a, b))
    cosines, agreement = _agreement(encoded(a, ids_a), encoded(b, ids_b), texts)
    groups = {
        "length": _groups(cosines, [_length_band(len(ids)) for ids in ids_a]),
        "script": _groups(cosines, [script_of(text) for text in texts]),
    }
    return replace(agreement, groups=groups)


def compare_vectors(a: Vectors, b: Vectors, texts: Sequence[str] = ()) -> Agreement:
    """Return how far two arrays of vectors agree, float32 [N, M] each; they need not be unit rows.

    A row that is not finite, or all zeros, is a failed one.

    Raises:
        NegativeAnswer: the shapes differ, or no row is left to compare.
    """
    return _agreement(a, b, texts)[1]


def bar_for(dtype_a: str, dtype_b: str) -> float:
    """Return the least cosine to expect of correct models of these two types: see `BARS`."""
    dtypes = re.sub(r"\bfp", "f", f"{dtype_a}+{dtype_b}".lower())
    return min(_bar(dtype) for dtype in dtypes.split("+"))


def _bar(dtype: str) -> float:
    few_bits = dtype.startswith(("q1", "q2", "q3", "q4", "q5", "iq", "tq", "mxfp4", "nvfp4"))
    return BARS["q4_0"] if few_bits else BARS.get(dtype, DEFAULT_BAR)


def stored_bar(dtype: str) -> float:
    """Return the least cosine to expect of two files of the same vectors: see `STORED_BARS`."""
    return STORED_BARS[dtype]


def script_of(text: str) -> str:
    """Return the script of most letters: the first word of their Unicode names, as `latin`."""
    letters = (unicodedata.name(char, "") for char in text if char.isalpha())
    counts = Counter(name.split(" ")[0].lower() for name in letters)
    return counts.most_common(1)[0][0] if counts else "no letters"


def prompted_ids(model: Encoder, texts: Sequence[str], task: str, limit: int) -> list[TokenIds]:
    """Return each text's ids with its prompt, cut to `limit` tokens, its closing ones kept."""
    prompt = for_task(task, model.profile.prompts)
    tokenized = model.tokenize([prompt.render(text) for text in texts])
    return [cut_ids(ids, limit, model.profile.closing_tokens) for ids in tokenized]


def encoded(model: Encoder, ids: Sequence[TokenIds]) -> Vectors:
    """Return unit vectors, float32 [N, dim], encoded shortest first and put back in order.

    A row for which the model gives none of length one is NaN.
    """
    vectors = np.empty((len(ids), model.profile.dim), np.float32)
    batch: list[int] = []
    tokens = 0
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for row in order:
        if batch and tokens + len(ids[row]) > BATCH_TOKENS:
            vectors[batch] = model.encode([ids[i] for i in batch])
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(ids[row])
    if batch:
        vectors[batch] = model.encode([ids[i] for i in batch])
    vectors[~are_units(vectors, "f32", vectors.shape[1])] = np.nan
    return vectors


def _agreement(a: Vectors, b: Vectors, texts: Sequence[str]) -> tuple[Doubles, Agreement]:
    """Return each row's cosine, float64 [N] (NaN where a side failed), and the agreement."""
    if a.shape != b.shape:
        raise NegativeAnswer(f"the vectors differ in shape: {_shape(a)} and {_shape(b)}")
    unit_a, unit_b = _unit(a), _unit(b)
    failed_a, failed_b = (np.isnan(unit[:, :1]).any(axis=1) for unit in (unit_a, unit_b))
    good = np.flatnonzero(~(failed_a | failed_b))
    if not len(good):
        raise NegativeAnswer("nothing to compare: there is no row with a vector on both sides")
    cosines = np.full(len(a), np.nan)
    cosines[good] = np.einsum("nm,nm->n", unit_a[good], unit_b[good], dtype=np.float64)
    worst = int(good[np.argmin(cosines[good])])
    ranked = good[np.linspace(0, len(good) - 1, min(len(good), RANKED_ROWS)).astype(int)]
    ranks, spearman = _ranks(unit_a[ranked], unit_b[ranked])
    return cosines, Agreement(
        count=len(good),
        min_cosine=float(cosines[worst]),
        mean_cosine=float(cosines[good].mean()),
        worst_row=worst,
        worst_text=texts[worst] if len(texts) else "",
        rank_agreement=ranks,
        spearman=spearman,
        one_failed=int((failed_a != failed_b).sum()),
        both_failed=int((failed_a & failed_b).sum()),
    )


def _unit(vectors: Vectors) -> Vectors:
    """Return unit rows; a row that is not finite, or all zeros, becomes NaN."""
    lengths = np.sqrt(np.einsum("nm,nm->n", vectors, vectors, dtype=np.float64))
    lengths[~np.isfinite(lengths) | (lengths == 0)] = np.nan
    unit: Vectors = (vectors / lengths[:, None]).astype(np.float32)
    return unit


def _ranks(a: Vectors, b: Vectors) -> tuple[float, float]:
    """Return the agreement of the nearest rows, and Spearman's rho of all pairs; 1 for one row."""
    if len(a) < 2:
        return 1.0, 1.0
    similar_a, similar_b = a @ a.T, b @ b.T
    pairs = np.triu_indices(len(a), 1)
    spearman = _spearman(similar_a[pairs], similar_b[pairs])
    for similar in (similar_a, similar_b):
        np.fill_diagonal(similar, -np.inf)
    nearest = min(NEIGHBOURS, len(a) - 1)
    shared = _shared(similar_a, similar_b, nearest) + _shared(similar_b, similar_a, nearest)
    return shared / 2, spearman


def _shared(ours: Vectors, theirs: Vectors, nearest: int) -> float:
    """Return the share of our nearest rows that are among theirs, or tie with the last of them."""
    rows = np.argpartition(-ours, nearest - 1, axis=1)[:, :nearest]
    least = -np.partition(-theirs, nearest - 1, axis=1)[:, nearest - 1 : nearest]
    return float((np.take_along_axis(theirs, rows, axis=1) >= least - TIE).mean())


def _spearman(a: Vectors, b: Vectors) -> float:
    """Return Spearman's rank correlation of two lists of numbers, ties at their mean rank."""
    ranks = []
    for values in (a, b):
        _, group, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[group])
    a_rank, b_rank = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((a_rank**2).sum() * (b_rank**2).sum()))
    return float((a_rank * b_rank).sum() / norm) if norm else 1.0


def _groups(cosines: Doubles, names: Sequence[str]) -> tuple[TextGroup, ...]:
    """Return the groups, in the order in which their names first appear; failed rows left out."""
    by_name: dict[str, list[float]] = {}
    for name, cosine in zip(names, cosines, strict=True):
        if np.isfinite(cosine):
            by_name.setdefault(name, []).append(float(cosine))
    return tuple(
        TextGroup(
            name=name,
            count=len(in_group),
            min_cosine=min(in_group),
            mean_cosine=float(np.mean(in_group)),
        )
        for name, in_group in by_name.items()
    )


def _length_band(tokens: int) -> str:
    return next((name for limit, name in LENGTH_BANDS if tokens <= limit), LONGEST_BAND)


def _shape(vectors: Vectors) -> str:
    return " x ".join(str(size) for size in vectors.shape)


_ENGLISH = (
    "hello",
    "a",
    "Why is the sky blue?",
    "The Red Planet is the fourth planet from the Sun.",
    "How do I cancel an order that has already been shipped?",
    "Orders can be cancelled free of charge until the parcel has left our warehouse.",
    "What is the capital of France?",
    "Paris is the capital and the largest city of France.",
    "The bank raised its interest rate by a quarter of a point on Thursday.",
    "She sat on the bank of the river and watched the boats go by.",
    "It isn't what you don't know that gets you into trouble, it's what you know for sure.",
    "NEVER SHOUT AT A MODEL; IT DOES NOT HEAR YOU.",
    "the quick brown fox jumps over the lazy dog",
    "On 3 March 2024 at 07:45 the sensor read -12.75 °C, 1,013.25 hPa and 98 % humidity.",
    "Call +44 20 7946 0958 or write to someone@example.org before 31/12/1999.",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
)
_LATIN = (
    "Wie storniere ich eine Bestellung, die schon verschickt wurde?",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "L'été dernier, nous avons traversé les Pyrénées à vélo.",
    "¿Dónde está la biblioteca más cercana?",
    "A lua cheia iluminava o caminho até à praia.",
    "Zażółć gęślą jaźń.",
    "Pijamalı hasta yağız şoföre çabucak güvendi.",
    "Tôi muốn đặt một bàn cho bốn người vào tối nay.",
)
_SCRIPTS = (
    "Как отменить заказ, который уже отправлен?",
    "Столиця України розташована на берегах Дніпра.",
    "Πώς μπορώ να ακυρώσω μια παραγγελία;",
    "כיצד מבטלים הזמנה שכבר נשלחה?",
    "كيف يمكنني إلغاء طلب تم شحنه بالفعل؟",
    "मैं पहले से भेजा गया ऑर्डर कैसे रद्द करूँ?",
    "আমি কীভাবে আমার অর্ডার বাতিল করব?",
    "நான் எப்படி ஆர்டரை ரத்து செய்வது?",
    "ฉันจะยกเลิกคำสั่งซื้อที่จัดส่งแล้วได้อย่างไร",
    "已经发货的订单怎么取消？",
    "已經出貨的訂單怎麼取消？",
    "発送済みの注文をキャンセルするにはどうすればよいですか。",
    "이미 배송된 주문은 어떻게 취소하나요?",
    "როგორ გავაუქმო შეკვეთა?",
    "Ինչպե՞ս չեղարկել պատվերը։",
    "ቀድሞ የተላከ ትዕዛዝ እንዴት እሰርዛለሁ?",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ᛫ᚠᛁᚱᚪ᛫ᚷᛖᚻᚹᛦᛚᚳᚢᛗ",  # rare: falls back to bytes
    "Das Wort 東京 und слово в одном предложении, mixed 한국어 too.",
)
_CODE = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "SELECT name, COUNT(*) FROM orders WHERE paid = FALSE GROUP BY name HAVING COUNT(*) > 3;",
    "for (size_t i = 0; i < n; ++i) {\n\tsum += x[i] * y[i];\n}",
    "git log --format=%s | gemb embed -o vectors.npy",
    '{"id": 17, "tags": ["a", "b"], "price": 1e-5, "note": null}',
    "<div class=\"card\"><a href='/cart?id=7&n=2'>Add to cart</a></div>",
    "error[E0382]: borrow of moved value: `buffer` --> src/main.rs:42:17",
    "https://example.org/a/b.html?q=blue+sky&lang=en#section-2",
)
_ODD = (
    "🙂",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇺🇦 and 👍🏽",
    "e\u0301 is not é until somebody normalises it",
    "  two leading spaces, a tab\tand trailing spaces   ",
    "line one\nline two\n\n\nline five\r\nline six",
    "<bos>literal special tokens<eos> <pad> <unk> <start_of_turn>user",
    "000000000000000000000000000000000000000000000000",
    "∑ₙ₌₁^∞ 1/n² = π²/6, ∀x ∈ ℝ: x² ≥ 0",
    "zero\u200bwidth\u00a0no-break\u2003em space",
    "title: none | text: ",
    "…—–“”‘’«»‹›※†‡•",
)
_LONG = (
    " ".join(_ENGLISH[2:12] * 6),
    "\n".join(_CODE * 5),
    " ".join(_SCRIPTS * 3),
)

# The default texts for comparing two models. They cover the usual causes of different vectors: the
# tokenizer (scripts, byte fallback, white space, digits, literal special tokens), the batch (one
# token beside hundreds), and the sliding window. With a bidirectional window of 512, only texts of
# more than 257 tokens reach its edge, so three texts are longer than 600.
VERIFICATION_TEXTS: tuple[str, ...] = _ENGLISH + _LATIN + _SCRIPTS + _CODE + _ODD + _LONG
