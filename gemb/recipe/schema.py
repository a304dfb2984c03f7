"""Every key of a training recipe: its type, limits, default, unit and meaning.

YAML is only the notation: `read` turns it into these structs, whose annotations are the rules.
`gemb recipes schema` prints the descriptions. Where the EmbeddingGemma paper (arXiv 2509.20354) is
silent, the description of a default names its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from gemb.models.tensors import FP16_OVERFLOW
from gemb.recipe.names import Task

Stage = Literal["adapt", "pretrain", "finetune", "distill", "draft"]
Pooling = Literal["mean", "first", "last", "attention"]
Side = Literal["query", "positive", "negative"]
QatType = Literal["q4_0", "q8_0", "bf16", "f32"]  # gemb.models.tensors.QAT_TYPES

Count: TypeAlias = Annotated[int, Meta(ge=0)]
OneOrMore: TypeAlias = Annotated[int, Meta(ge=1)]
Weight: TypeAlias = Annotated[float, Meta(ge=0)]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
LessThanOne: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]

_NO_FP16 = f"{FP16_OVERFLOW}; take bf16"
_K_QUANT = (
    "the search for its scales has no gradient, so training cannot follow it; take q4_0 or q8_0"
)
# Values that users try, and why a key does not take them: read by the messages of `read`.
_PRECISIONS = {"refused": {"fp16": _NO_FP16}}
_TYPES = {
    "refused": {
        **dict.fromkeys(("q4_k", "q4_k_m", "q5_k", "q5_k_m", "q6_k", "q8_k"), _K_QUANT),
        "int4": "a GGUF file's int4 is q4_0",
        "int8": "a GGUF file's int8 is q8_0",
        "f16": _NO_FP16,
    }
}


class Block(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a recipe."""


class Init(Block, frozen=True, kw_only=True):
    """The model that training starts from."""

    model: Annotated[
        str, Meta(description="model reference: a folder, a .gguf, a name, org/repo")
    ] = field(name="from")
    keep_layers: Annotated[
        str, Meta(description="all; layers as in 0,1,5-8; or greedy:N, which removes by cosine")
    ] = "all"
    vocab: Annotated[
        Count, Meta(description="tokens to keep, those most used in the data; 0: all")
    ] = 0


class Prompts(Block, frozen=True, kw_only=True):
    """The words around the texts of a source: templates with {text}, perhaps {title}."""

    query: Annotated[str, Meta(description="of the query; empty: as the task says")] = ""
    positive: Annotated[
        str, Meta(description="of positive and negatives; empty: as the task says")
    ] = ""


class Source(Block, frozen=True, kw_only=True):
    """A file or folder of pairs. Every batch comes from one source."""

    path: Annotated[
        str,
        Meta(
            description="JSONL, CSV, TSV, Parquet (.gz too) or a BEIR folder; @sample: gemb's own"
        ),
    ]
    name: Annotated[str, Meta(description="in reports; empty: the file's stem")] = ""
    weight: Annotated[
        Positive | None, Meta(description="share of the batches, relative; null: by its rows")
    ] = None
    task: Annotated[Task, Meta(description="which prompts, of the model's own dictionary")] = (
        "retrieval"
    )
    prompts: Annotated[Prompts, Meta(description="words that replace the task's")] = Prompts()
    rows: Annotated[Count, Meta(description="only the first so many; 0: all")] = 0
    encoding: Annotated[
        str, Meta(description="of a file that is not UTF-8: cp1252, shift_jis; empty: UTF-8")
    ] = ""
    corpus: Annotated[
        str,
        Meta(description="documents that its rows name by id; empty: corpus.jsonl beside it"),
    ] = ""


class Batch(Block, frozen=True, kw_only=True):
    """How much text a step sees."""

    pairs: Annotated[
        int,
        Meta(
            ge=2,
            description="pairs a step, over all processes; each pair's negatives are the others",
        ),
    ] = 128
    negatives: Annotated[
        Count, Meta(description="own hard negatives a pair at most, where the data has them")
    ] = 1
    max_tokens: Annotated[
        OneOrMore, Meta(description="tokens a text; longer ones are cut, and counted")
    ] = 512
    accumulate: Annotated[
        OneOrMore, Meta(description="batches a step, one source each; their gradients' mean counts")
    ] = 1
    micro_tokens: Annotated[
        OneOrMore,
        Meta(description="tokens in memory at a time; more are computed twice (gradient cache)"),
    ] = 2048


class Adapt(Block, frozen=True, kw_only=True):
    """A decoder becomes an encoder-decoder, whose encoder is kept (T5Gemma, arXiv 2504.06225)."""

    objective: Annotated[
        Literal["ul2", "prefix_lm"],
        Meta(
            description="ul2: T5Gemma 2's five tasks (arXiv 2512.14856); prefix_lm: the second "
            "half of a text"
        ),
    ] = "ul2"
    tokens: Annotated[
        OneOrMore, Meta(description="tokens a step, input and target, over all processes")
    ] = 65536
    cross_attention: Annotated[
        Literal["copy", "random"],
        Meta(description="copy: begins as the decoder's self-attention"),
    ] = "copy"
    cross_warmup_steps: Annotated[
        Count,
        Meta(description="first steps, in which a random cross-attention alone learns (T5Gemma)"),
    ] = 1000


class Draft(Block, frozen=True, kw_only=True):
    """A static encoder whose vectors lie in the space of the model of `init`, its teacher.

    Sources: Model2Vec (first rows), Luxical (head, likenesses), Constella (frozen vectors).
    """

    width: Annotated[OneOrMore, Meta(description="of a token's row")] = 256
    hidden: Annotated[
        OneOrMore, Meta(description="width inside the head; at least two of a row's")
    ] = 1024
    sif: Annotated[
        Positive, Meta(description="a of a row's first weight, a / (a + its token's share) (SIF)")
    ] = 1e-4
    queries: Annotated[
        OneOrMore,
        Meta(description="rows whose queries the teacher embeds, of all sources by their weights"),
    ] = 100_000
    documents: Annotated[
        OneOrMore, Meta(description="of these, rows whose positives it embeds, too")
    ] = 15_000
    passages: Annotated[
        str,
        Meta(description="JSON lines with text, perhaps title: more documents; empty: none"),
    ] = ""
    passage_rows: Annotated[Count, Meta(description="how many of them; 0: all")] = 0
    backend: Annotated[str, Meta(description="what runs the teacher; auto: the fastest")] = "auto"
    texts: Annotated[
        int, Meta(ge=2, description="a step, beside the pairs, whose vectors are the teacher's")
    ] = 512
    contrast: Annotated[
        Weight, Meta(description="weight of InfoNCE with the teacher's query vectors, both ways")
    ] = 1.0
    temperature: Annotated[Positive, Meta(description="of its cosines")] = 0.05
    cosine: Annotated[
        Weight, Meta(description="weight of 1 - cosine to the teacher's vectors of documents")
    ] = 4.0
    likeness: Annotated[
        Weight,
        Meta(description="weight of the KL divergence of their likenesses to each other"),
    ] = 1.0


class Contrastive(Block, frozen=True, kw_only=True):
    """NCE with in-batch negatives (paper, eq. 2 and 3)."""

    weight: Annotated[Weight, Meta(description="in the sum of losses")] = 1.0
    temperature: Annotated[
        Positive, Meta(description="of the cosines; the paper is silent: jina-embeddings-v5")
    ] = 0.02
    hardness: Annotated[
        Weight, Meta(description="alpha of the hard negatives' weight exp(alpha cos) (paper)")
    ] = 5.0
    mask_duplicates: Annotated[
        bool, Meta(description="equal queries or positives are no negatives (paper, eq. 3)")
    ] = True


class SpreadOut(Block, frozen=True, kw_only=True):
    """Global orthogonal regulariser (paper, eq. 4)."""

    weight: Annotated[
        Weight,
        Meta(description="in the sum of losses; the paper is silent: jina-embeddings-v5"),
    ] = 1.0


class Distill(Block, frozen=True, kw_only=True):
    """Geometric embedding distillation (paper, eq. 5)."""

    teacher: Annotated[
        str, Meta(description="model reference, or a file of vectors that `gemb embed` wrote")
    ]
    weight: Annotated[Weight, Meta(description="in the sum of losses")] = 1.0
    sides: Annotated[tuple[Side, ...], Meta(description="which texts are matched")] = (
        "query",
        "positive",
        "negative",
    )
    distance: Annotated[
        Literal["l2", "squared", "cosine"],
        Meta(description="between unit vectors (EmbedDistill)"),
    ] = "l2"
    similarity_weight: Annotated[
        Weight,
        Meta(description="of the squared difference of both models' similarity matrices"),
    ] = 0.0


class Loss(Block, frozen=True, kw_only=True):
    """What is minimised: the weighted sum of the parts that are given."""

    matryoshka: Annotated[
        tuple[OneOrMore, ...], Meta(description="widths of NCE and spread-out (paper)")
    ] = (768, 512, 256, 128)
    contrastive: Annotated[Contrastive | None, Meta(description="null: none")] = None
    spread_out: Annotated[SpreadOut | None, Meta(description="null: none")] = None
    distill: Annotated[Distill | None, Meta(description="null: none")] = None


class Qat(Block, frozen=True, kw_only=True):
    """Quantization-aware training: weights are rounded as in the file, gradients are not (paper).

    Norms stay f32.
    """

    token_embd: Annotated[QatType, Meta(description="of the token table", extra=_TYPES)] = "q4_0"
    attention: Annotated[QatType, Meta(description="of q, k, v and o", extra=_TYPES)] = "q4_0"
    ffn: Annotated[QatType, Meta(description="of gate, up and down", extra=_TYPES)] = "q4_0"
    dense: Annotated[QatType, Meta(description="of the two dense layers", extra=_TYPES)] = "q4_0"


class Optimizer(Block, frozen=True, kw_only=True):
    """AdamW and its schedule."""

    lr: Annotated[
        Positive,
        Meta(description="peak; the paper is silent: Hugging Face's fine-tuning of EmbeddingGemma"),
    ] = 2e-5
    head_lr: Annotated[
        Weight, Meta(description="peak of dense layers and attention pooling; 0: as lr")
    ] = 0.0
    beta1: Annotated[LessThanOne, Meta(description="of the first moment")] = 0.9
    beta2: Annotated[LessThanOne, Meta(description="of the second moment")] = 0.999
    eps: Annotated[Positive, Meta(description="added to the root of the second moment")] = 1e-8
    weight_decay: Annotated[
        Weight, Meta(description="of the matrices; never of norms and token rows")
    ] = 0.01
    warmup_fraction: Annotated[
        Share, Meta(description="share of the steps in which lr rises from 0")
    ] = 0.1
    decay: Annotated[
        Literal["cosine", "linear", "none"], Meta(description="of lr after the warm-up")
    ] = "linear"
    final_lr_fraction: Annotated[Share, Meta(description="of the peak, at the last step")] = 0.0
    max_grad_norm: Annotated[
        Weight, Meta(description="longer gradients are shortened to this; 0: never")
    ] = 1.0


class Run(Block, frozen=True, kw_only=True):
    """How long, and how."""

    steps: Annotated[Count, Meta(description="0: as many as `epochs` takes")] = 0
    epochs: Annotated[Positive, Meta(description="passes over all rows, when steps is 0")] = 1.0
    precision: Annotated[
        Literal["bf16", "fp32"],
        Meta(description="of the products; weights are fp32 always", extra=_PRECISIONS),
    ] = "bf16"
    activation_checkpointing: Annotated[
        bool, Meta(description="less memory, a third more work")
    ] = False
    compile: Annotated[bool, Meta(description="torch.compile the layers")] = False
    shard: Annotated[Literal["none", "fsdp2"], Meta(description="of weights over processes")] = (
        "none"
    )
    log_every: Annotated[OneOrMore, Meta(description="steps between lines of metrics.jsonl")] = 10
    workers: Annotated[
        OneOrMore,
        Meta(description="threads that prepare batches; the batches do not depend on it"),
    ] = 2


class Evaluation(Block, frozen=True, kw_only=True):
    """The user's own development set, as `gemb eval` takes it."""

    data: Annotated[
        str, Meta(description="folder or built-in set; empty: no evaluation, no verdict")
    ] = ""
    encoding: Annotated[
        str, Meta(description="of its files, if they are not UTF-8: cp1252, shift_jis")
    ] = ""
    every_steps: Annotated[
        Count, Meta(description="between evaluations in the run; 0: only first and last")
    ] = 0
    dims: Annotated[
        tuple[OneOrMore, ...],
        Meta(description="widths; empty: the widest and the narrowest of matryoshka"),
    ] = ()
    shared_documents: Annotated[
        bool,
        Meta(
            description="positives and negatives may be documents of the evaluation; queries never"
        ),
    ] = False


class Saving(Block, frozen=True, kw_only=True):
    """Checkpoints to resume from."""

    every_steps: Annotated[
        Count, Meta(description="between checkpoints; 0: only on request and at the end")
    ] = 500
    every_minutes: Annotated[
        Weight, Meta(description="at most, between checkpoints; 0: by steps alone")
    ] = 30.0
    keep: Annotated[OneOrMore, Meta(description="how many of the last to keep")] = 2


class Mixtures(Block, frozen=True, kw_only=True):
    """A search of the weights of `data`, by short runs; the best run in full and are averaged."""

    trials: Annotated[
        OneOrMore,
        Meta(description="mixtures in all; after those drawn by Bayesian optimisation"),
    ] = 30
    seeds: Annotated[
        Count,
        Meta(description="drawn from a Dirichlet distribution, after data's own (paper: 10)"),
    ] = 10
    concentration: Annotated[
        Positive,
        Meta(description="of that distribution; 1: every mixture alike, less: few sources each"),
    ] = 1.0
    steps: Annotated[
        OneOrMore,
        Meta(description="of a trial; a batch is of one source, so few steps tell no shares apart"),
    ] = 200
    best: Annotated[OneOrMore, Meta(description="how many run in full (paper's Table 4: 3)")] = 3


class Recipe(Block, frozen=True, kw_only=True):
    """One stage of training."""

    stage: Annotated[
        Stage,
        Meta(
            description="adapt (a decoder), pretrain (pairs), finetune (triplets), distill (a "
            "teacher) or draft (a static encoder)"
        ),
    ]
    seed: Annotated[Count, Meta(description="of the order of the data and of fresh weights")] = 0
    init: Annotated[Init, Meta(description="where to start")]
    pooling: Annotated[
        Pooling,
        Meta(description="of the last layer's states; attention has four learned queries"),
    ] = "mean"
    data: Annotated[tuple[Source, ...], Meta(description="the mixture")]
    held_out: Annotated[
        tuple[str, ...],
        Meta(
            description="sets as eval.data takes them: rows with a text of theirs are never drawn"
        ),
    ] = ()
    batch: Annotated[Batch, Meta(description="how much text a step sees")] = Batch()
    adapt: Annotated[
        Adapt | None, Meta(description="of the stage adapt alone; null: its defaults there")
    ] = None
    draft: Annotated[
        Draft | None, Meta(description="of the stage draft alone; null: its defaults there")
    ] = None
    loss: Annotated[Loss, Meta(description="what is minimised")] = Loss()
    qat: Annotated[
        Qat | None, Meta(description="types to train for, as in the GGUF file; null: none")
    ] = None
    optimizer: Annotated[Optimizer, Meta(description="AdamW and its schedule")] = Optimizer()
    run: Annotated[Run, Meta(description="how long, and how")] = Run()
    eval: Annotated[Evaluation, Meta(description="baseline, curve and verdict")] = Evaluation()
    checkpoint: Annotated[Saving, Meta(description="to resume from")] = Saving()
    mixtures: Annotated[Mixtures | None, Meta(description="search of the weights; null: none")] = (
        None
    )
