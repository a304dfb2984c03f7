"""What a recipe's types cannot say alone: limits, names in YAML, values refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers that make sense; of a list, of each of its items."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def hold(self, number: float) -> bool:
        """Return whether the number is within; one that is not finite never is."""
        return (
            abs(number) != float("inf")
            and number == number
            and (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )

    def __str__(self) -> str:
        """Return `above 0`, `from 0 to 1`, or nothing."""
        words = (
            ("above", self.above),
            ("from", self.at_least),
            ("to below", self.below),
            ("to", self.at_most),
        )
        return " ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)


@dataclass(frozen=True)
class Named:
    """The key in YAML, where Python has another word."""

    key: str


@dataclass(frozen=True)
class Refused:
    """A value that people will try, and why it is not taken."""

    value: str
    reason: str


ANY = Limits()
POSITIVE = Limits(above=0)
NOT_NEGATIVE = Limits(at_least=0)
ONE_OR_MORE = Limits(at_least=1)
SHARE = Limits(at_least=0, at_most=1)
LESS_THAN_ONE = Limits(at_least=0, below=1)


# What the texts of training data are for. It stands alone, for every `gemb` loads it.


Task = Literal["retrieval", "similarity", "code", "qa", "fact", "classification", "clustering"]


# What a recipe can say: every key of a training recipe, its type, default, unit and meaning.
#
# YAML is only its notation (`recipe_file.py` reads and checks it); the words beside
# a type are what `gemb recipes schema` prints. Where the EmbeddingGemma paper
# (arXiv 2509.20354) is silent, a default's comment names where the value comes from.


Stage = Literal["adapt", "pretrain", "finetune", "distill"]
Pooling = Literal["mean", "first", "last", "attention"]
Side = Literal["query", "positive", "negative"]

QatType = Literal["q4_0", "q8_0", "bf16", "f32"]  # that `gemb export-gguf` can write

# Sources of the figure: vLLM #24318, transformers #37226.
NO_FP16 = Refused(
    "fp16", "EmbeddingGemma's activations reach 800,000, and fp16 ends at 65,504; take bf16"
)


@dataclass(frozen=True, kw_only=True)
class Init:
    """The model that training starts from."""

    model: Annotated[str, "model reference: a folder, a .gguf, a name, org/repo", Named("from")]
    keep_layers: Annotated[
        str, "all; layers as in 0,1,5-8; or greedy:N, which removes by cosine"
    ] = "all"
    vocab: Annotated[int, "tokens to keep, those most used in the data; 0: all", NOT_NEGATIVE] = 0


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The words around the texts of a source: templates with {text}, perhaps {title}."""

    query: Annotated[str, "of the query; empty: as the task says"] = ""
    positive: Annotated[str, "of positive and negatives; empty: as the task says"] = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or folder of pairs. Every batch comes from one source."""

    path: Annotated[str, "JSONL, CSV, TSV, Parquet (.gz too) or a BEIR folder; @sample: gemb's own"]
    name: Annotated[str, "in reports; empty: the file's stem"] = ""
    weight: Annotated[
        float | None, "share of the batches, relative; null: by its rows", POSITIVE
    ] = None
    task: Annotated[Task, "which prompts, of the model's own dictionary"] = "retrieval"
    prompts: Annotated[Prompts, "words that replace the task's"] = Prompts()
    rows: Annotated[int, "only the first so many; 0: all", NOT_NEGATIVE] = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How much text a step sees."""

    pairs: Annotated[
        int,
        "pairs a step, over all processes; each pair's negatives are the others",
        Limits(at_least=2),
    ] = 128
    negatives: Annotated[
        int, "own hard negatives a pair at most, where the data has them", NOT_NEGATIVE
    ] = 1
    max_tokens: Annotated[int, "tokens a text; longer ones are cut, and counted", ONE_OR_MORE] = 512
    accumulate: Annotated[
        int, "batches a step, one source each; their gradients' mean counts", ONE_OR_MORE
    ] = 1
    micro_tokens: Annotated[
        int, "tokens in memory at a time; more are computed twice (gradient cache)", ONE_OR_MORE
    ] = 2048


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """A decoder becomes an encoder-decoder, whose encoder is kept (T5Gemma, arXiv 2504.06225)."""

    objective: Annotated[
        Literal["ul2", "prefix_lm"],
        "ul2: T5Gemma 2's five tasks (arXiv 2512.14856); prefix_lm: the second half of a text",
    ] = "ul2"
    tokens: Annotated[int, "tokens a step, input and target, over all processes", ONE_OR_MORE] = (
        65536
    )
    cross_attention: Annotated[
        Literal["copy", "random"], "copy: begins as the decoder's self-attention"
    ] = "copy"
    cross_warmup_steps: Annotated[
        int, "first steps, in which a random cross-attention alone learns (T5Gemma)", NOT_NEGATIVE
    ] = 1000


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """NCE with in-batch negatives (paper, eq. 2 and 3)."""

    weight: Annotated[float, "in the sum of losses", NOT_NEGATIVE] = 1.0
    temperature: Annotated[
        float, "of the cosines; the paper is silent: jina-embeddings-v5", POSITIVE
    ] = 0.02
    hardness: Annotated[
        float, "alpha of the hard negatives' weight exp(alpha cos) (paper)", NOT_NEGATIVE
    ] = 5.0
    mask_duplicates: Annotated[
        bool, "equal queries or positives are no negatives (paper, eq. 3)"
    ] = True


@dataclass(frozen=True, kw_only=True)
class SpreadOut:
    """Global orthogonal regulariser (paper, eq. 4)."""

    weight: Annotated[
        float, "in the sum of losses; the paper is silent: jina-embeddings-v5", NOT_NEGATIVE
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Geometric embedding distillation (paper, eq. 5)."""

    teacher: Annotated[str, "model reference, or a file of vectors that `gemb embed` wrote"]
    weight: Annotated[float, "in the sum of losses", NOT_NEGATIVE] = 1.0
    sides: Annotated[tuple[Side, ...], "which texts are matched"] = (
        "query",
        "positive",
        "negative",
    )
    distance: Annotated[
        Literal["l2", "squared", "cosine"], "between unit vectors (EmbedDistill)"
    ] = "l2"
    similarity_weight: Annotated[
        float, "of the squared difference of both models' similarity matrices", NOT_NEGATIVE
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: the weighted sum of the parts that are given."""

    matryoshka: Annotated[tuple[int, ...], "widths of NCE and spread-out (paper)", ONE_OR_MORE] = (
        768,
        512,
        256,
        128,
    )
    contrastive: Annotated[Contrastive | None, "null: none"] = None
    spread_out: Annotated[SpreadOut | None, "null: none"] = None
    distill: Annotated[Distill | None, "null: none"] = None


_K_QUANT = "its scales are searched for, which training cannot follow; q4_0 and q8_0 it can"
_REFUSED_TYPES = (
    *(Refused(name, _K_QUANT) for name in ("q4_k", "q4_k_m", "q5_k", "q5_k_m", "q6_k", "q8_k")),
    Refused("int4", "a GGUF file's int4 is q4_0"),
    Refused("int8", "a GGUF file's int8 is q8_0"),
    Refused("f16", NO_FP16.reason),
)


@dataclass(frozen=True, kw_only=True)
class Qat:
    """Quantization-aware training: weights are rounded as in the file, gradients are not (paper).

    Norms stay f32.
    """

    token_embd: Annotated[QatType, "of the token table", *_REFUSED_TYPES] = "q4_0"
    attention: Annotated[QatType, "of q, k, v and o", *_REFUSED_TYPES] = "q4_0"
    ffn: Annotated[QatType, "of gate, up and down", *_REFUSED_TYPES] = "q4_0"
    dense: Annotated[QatType, "of the two dense layers", *_REFUSED_TYPES] = "q4_0"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its schedule."""

    lr: Annotated[
        float, "peak; the paper is silent: Hugging Face's fine-tuning of EmbeddingGemma", POSITIVE
    ] = 2e-5
    head_lr: Annotated[
        float, "peak of dense layers and attention pooling; 0: as lr", NOT_NEGATIVE
    ] = 0.0
    beta1: Annotated[float, "of the first moment", LESS_THAN_ONE] = 0.9
    beta2: Annotated[float, "of the second moment", LESS_THAN_ONE] = 0.999
    eps: Annotated[float, "added to the root of the second moment", POSITIVE] = 1e-8
    weight_decay: Annotated[
        float, "of the matrices; never of norms and token rows", NOT_NEGATIVE
    ] = 0.01
    warmup_fraction: Annotated[float, "share of the steps in which lr rises from 0", SHARE] = 0.1
    decay: Annotated[Literal["cosine", "linear", "none"], "of lr after the warm-up"] = "linear"
    final_lr_fraction: Annotated[float, "of the peak, at the last step", SHARE] = 0.0
    max_grad_norm: Annotated[
        float, "longer gradients are shortened to this; 0: never", NOT_NEGATIVE
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, and how."""

    steps: Annotated[int, "0: as many as `epochs` takes", NOT_NEGATIVE] = 0
    epochs: Annotated[float, "passes over all rows, when steps is 0", POSITIVE] = 1.0
    precision: Annotated[
        Literal["bf16", "fp32"], "of the products; weights are fp32 always", NO_FP16
    ] = "bf16"
    activation_checkpointing: Annotated[bool, "less memory, a third more work"] = False
    compile: Annotated[bool, "torch.compile the layers"] = False
    shard: Annotated[Literal["none", "fsdp2"], "of weights over processes"] = "none"
    log_every: Annotated[int, "steps between lines of metrics.jsonl", ONE_OR_MORE] = 10
    workers: Annotated[
        int, "threads that prepare batches; the batches do not depend on it", ONE_OR_MORE
    ] = 2


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The user's own development set, as `gemb eval` takes it."""

    data: Annotated[str, "folder or built-in set; empty: no evaluation, no verdict"] = ""
    every_steps: Annotated[
        int, "between evaluations in the run; 0: only first and last", NOT_NEGATIVE
    ] = 0
    dims: Annotated[
        tuple[int, ...], "widths; empty: the widest and the narrowest of matryoshka", ONE_OR_MORE
    ] = ()
    shared_documents: Annotated[
        bool, "positives and negatives may be documents of the evaluation; queries never"
    ] = False


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Checkpoints to resume from."""

    every_steps: Annotated[
        int, "between checkpoints; 0: only on request and at the end", NOT_NEGATIVE
    ] = 500
    every_minutes: Annotated[
        float, "at most, between checkpoints; 0: by steps alone", NOT_NEGATIVE
    ] = 30.0
    keep: Annotated[int, "how many of the last to keep", ONE_OR_MORE] = 2


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    """A search of the weights of `data`, by short runs; the best run in full and are averaged."""

    trials: Annotated[
        int, "mixtures in all; after those drawn by Bayesian optimisation", ONE_OR_MORE
    ] = 30
    seeds: Annotated[
        int, "drawn from a Dirichlet distribution, after data's own (paper: 10)", NOT_NEGATIVE
    ] = 10
    concentration: Annotated[
        float, "of that distribution; 1: every mixture alike, less: few sources each", POSITIVE
    ] = 1.0
    steps: Annotated[
        int, "of a trial; a batch is of one source, so few steps tell no shares apart", ONE_OR_MORE
    ] = 200
    best: Annotated[int, "how many run in full (paper's Table 4: 3)", ONE_OR_MORE] = 3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One stage of training."""

    stage: Annotated[
        Stage, "adapt (a decoder), pretrain (pairs), finetune (triplets) or distill (a teacher)"
    ]
    seed: Annotated[int, "of the order of the data and of fresh weights", NOT_NEGATIVE] = 0
    init: Annotated[Init, "where to start"]
    pooling: Annotated[
        Pooling, "of the last layer's states; attention has four learned queries"
    ] = "mean"
    data: Annotated[tuple[Source, ...], "the mixture"]
    held_out: Annotated[
        tuple[str, ...], "sets as eval.data takes them: rows with a text of theirs are never drawn"
    ] = ()
    batch: Annotated[Batch, "how much text a step sees"] = Batch()
    adapt: Annotated[Adapt | None, "of the stage adapt alone; null: its defaults there"] = None
    loss: Annotated[Loss, "what is minimised"] = Loss()
    qat: Annotated[Qat | None, "types to train for, as in the GGUF file; null: none"] = None
    optimizer: Annotated[Optimizer, "AdamW and its schedule"] = Optimizer()
    run: Annotated[Run, "how long, and how"] = Run()
    eval: Annotated[Evaluation, "baseline, curve and verdict"] = Evaluation()
    checkpoint: Annotated[Saving, "to resume from"] = Saving()
    mixtures: Annotated[Mixtures | None, "search of the weights; null: none"] = None
