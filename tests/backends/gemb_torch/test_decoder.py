"""The causal decoder and the encoder-decoder, against transformers' Gemma 3, T5Gemma, T5Gemma 2."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from gemb.models.checkpoint import open_checkpoint
from gemb.models.from_decoder import write_encoder
from gemb_torch.model.packing import pack
from gemb_torch.model.seq2seq import Seq2Seq, pack_pairs
from gemb_torch.model.weights import load
from tiny_decoder import write_tiny_decoder
from tiny_model import TinyShape


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A random Gemma 3 folder: window 16, both kinds of layer."""
    return write_tiny_decoder(tmp_path_factory.mktemp("decoder") / "model")


@pytest.fixture(scope="module")
def one_base(tmp_path_factory):
    """The same, of global layers alone: T5Gemma has one rotation for all."""
    shape = TinyShape(sliding_window_pattern=1)
    return write_tiny_decoder(tmp_path_factory.mktemp("global") / "model", shape)


def seq2seq(folder: Path, target: Path) -> Seq2Seq:
    target.mkdir()
    write_encoder(folder, target, seed=0)
    encoder = load(open_checkpoint(target))
    encoder.dense = torch.nn.ModuleList()
    return Seq2Seq(encoder)


def logits(model: Seq2Seq, texts: list[list[int]], max_padding: float = 0.0):
    """What the decoder alone says of packed texts."""
    ids = torch.tensor([i for text in texts for i in text])
    window = model.decoder.config.sliding_window
    packing = pack(
        [len(text) for text in texts], window=window, is_causal=True, max_padding=max_padding
    )
    with torch.no_grad():
        table = model.embed_tokens.weight
        return model.decoder(table[ids], packing) @ table.T


def random_texts(lengths, vocabulary=400, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(300, vocabulary, length).tolist() for length in lengths]


@pytest.mark.parametrize("max_padding", [0.0, 0.4])
def test_without_an_input_the_decoder_is_gemma_3(decoder, tmp_path, max_padding):
    # 1 to 600 tokens: shorter and longer than the window of 16.
    texts = random_texts([20, 20, 33, 90, 2, 1, 600])
    ours = logits(seq2seq(decoder, tmp_path / "m"), texts, max_padding)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(decoder, attn_implementation="eager")
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([text])).logits[0] for text in texts])
    # fp32 on both sides, three layers: rounding alone.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_the_real_270m_is_transformers_gemma_3(tmp_path):
    path = os.environ.get("GEMB_TEST_DECODER")
    if not path:
        pytest.skip("GEMB_TEST_DECODER does not name the GGUF file of gemma-3-270m")
    # transformers reads the file itself: its own names, its own norms.
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.Gemma3TextConfig(**load_gguf_checkpoint(path)["config"])
    config.sliding_window, config.query_pre_attn_scalar = 512, 256
    theirs = transformers.Gemma3ForCausalLM(config).eval()
    stored = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    missing, unknown = theirs.load_state_dict(stored, strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])
    theirs.tie_weights()
    ours = seq2seq(Path(path), tmp_path / "m")
    text = random_texts([700], vocabulary=200_000)[0]  # longer than the window of 512
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0]
    got = logits(ours, [text])
    # Logits reach 42, and either side is 2e-4 from its own arithmetic in 64 bits: 5e-6 of them.
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


class HeadNorm(torch.nn.Module):
    """A projection whose heads are normed as Gemma 3 norms them, by transformers' own norm."""

    def __init__(self, projection, weight, eps):
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

        super().__init__()
        self.projection, self.norm = projection, Gemma3RMSNorm(len(weight), eps)
        self.norm.weight.data = weight

    def forward(self, x):
        made = self.projection(x)
        heads = made.view(*made.shape[:-1], -1, len(self.norm.weight))
        return self.norm(heads).view(made.shape)


HEAD_NORMS = ("q_norm.weight", "k_norm.weight")


def renamed(name: str) -> str:
    """A parameter's name in transformers' T5Gemma and T5Gemma 2."""
    for old, new in (
        ("input_layernorm", "pre_self_attn_layernorm"),
        ("post_attention_layernorm", "post_self_attn_layernorm"),
        ("own.", ""),
    ):
        name = name.replace(old, new)
    return name


def t5gemma(model: Seq2Seq):
    """transformers' T5Gemma with these weights, and Gemma 3's norms of queries and keys put in.

    T5Gemma is Gemma 2's: it has none of them, caps its logits, which a config switches off, and
    rotates all layers alike, which a model of global layers does, too.
    """
    config = model.decoder.config
    part = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": int(config.query_pre_attn_scalar),
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    theirs = transformers.T5GemmaForConditionalGeneration(
        transformers.T5GemmaConfig(
            encoder=part, decoder=part, tie_word_embeddings=True, attn_implementation="eager"
        )
    ).eval()
    table = model.embed_tokens.weight
    state = {"lm_head.out_proj.weight": table}
    for stack in ("encoder", "decoder"):
        own = getattr(model, stack).state_dict() | {"embed_tokens.weight": table}
        state |= {f"model.{stack}.{renamed(name)}": own[name] for name in own}
    state = {name: value for name, value in state.items() if not name.endswith(HEAD_NORMS)}
    missing, unknown = theirs.load_state_dict(state, strict=False)
    assert [name for name in missing if "rotary" not in name] == unknown == []
    for ours, stack in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        for mine, layer in zip(ours.layers, getattr(theirs.model, stack).layers, strict=True):
            pairs = [(getattr(mine, "own", mine).self_attn, layer.self_attn)]
            if stack == "decoder":
                pairs.append((mine.cross_attn, layer.cross_attn))
            for mine_, theirs_ in pairs:
                for kind in "qk":
                    norm = getattr(mine_, f"{kind}_norm")
                    plain = getattr(theirs_, f"{kind}_proj")
                    setattr(theirs_, f"{kind}_proj", HeadNorm(plain, norm.weight, norm.eps))
    return theirs


@pytest.mark.parametrize("max_padding", [0.0, 0.5])
def test_with_an_input_it_is_t5gemma_in_losses_and_gradients(one_base, tmp_path, max_padding):
    model = seq2seq(one_base, tmp_path / "m")
    with torch.no_grad():  # copied cross-attention is a special case; so is any norm that is alike
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(3)) * 0.02)
    theirs = t5gemma(model)
    inputs = [np.array(ids) for ids in random_texts([30, 31, 7, 90])]
    targets = [np.array(ids) for ids in random_texts([12, 11, 40, 1], seed=1)]
    batch = pack_pairs(
        inputs, targets, bos=2, window=16, device=torch.device("cpu"), max_padding=max_padding
    )
    total, each = model(batch)
    total.backward()
    expected = [
        torch.nn.functional.cross_entropy(
            theirs(
                input_ids=torch.tensor([read.tolist()]),
                decoder_input_ids=torch.tensor([[2, *wanted.tolist()[:-1]]]),
            ).logits[0],
            torch.from_numpy(wanted),
            reduction="none",
        )
        for read, wanted in zip(inputs, targets, strict=True)
    ]
    torch.testing.assert_close(each, torch.cat(expected).detach(), rtol=1e-4, atol=1e-4)
    torch.cat(expected).sum().backward()
    ours = model.decoder.layers[0].cross_attn.k_proj.weight.grad
    reference = theirs.model.decoder.layers[0].cross_attn.k_proj.projection.weight.grad
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)
    # The table is encoder's input, decoder's input and softmax at once.
    tied = theirs.model.decoder.embed_tokens.weight
    tables = {id(one): one for one in (tied, theirs.model.encoder.embed_tokens.weight)}
    tables[id(theirs.lm_head.out_proj.weight)] = theirs.lm_head.out_proj.weight
    reference = sum(one.grad for one in tables.values())
    torch.testing.assert_close(model.embed_tokens.weight.grad, reference, rtol=1e-3, atol=1e-4)


def test_the_encoder_is_t5gemma_2s_within_the_window(decoder, tmp_path):
    """Up to 8 tokens: T5Gemma 2 sees 7 to the left and 8 to the right, EmbeddingGemma 8 and 8."""
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextEncoder

    model = seq2seq(decoder, tmp_path / "m")
    config = model.encoder.config
    theirs = T5Gemma2TextEncoder(
        transformers.models.t5gemma2.configuration_t5gemma2.T5Gemma2TextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            query_pre_attn_scalar=int(config.query_pre_attn_scalar),
            sliding_window=config.sliding_window,
            layer_types=[
                "sliding_attention" if slides else "full_attention" for slides in config.is_sliding
            ],
            dropout_rate=0.0,
            attn_implementation="eager",
        )
    ).eval()
    state = {renamed(name): value for name, value in model.encoder.state_dict().items()}
    missing, unknown = theirs.load_state_dict(state, strict=False)
    assert unknown == []
    assert set(missing) <= {"embed_tokens.eoi_embedding"}
    (text,) = random_texts([8])
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).last_hidden_state[0]
        got = model.encoder.hidden(torch.tensor(text), pack([8], window=config.sliding_window))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
