"""EmbeddingGemma again, in plain numpy: slow, obvious, one sequence at a time. The oracle.

Written from the paper and from transformers' `modeling_gemma3.py`, and sharing no line with gemb:
it reads the files itself. Computes in fp64, so that a difference is the other side's rounding.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class Reference:
    """A model folder of fp32 weights."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {
            k: v.astype(float) for k, v in load_file(folder / "model.safetensors").items()
        }
        self.dense = [
            load_file(folder / name / "model.safetensors")["linear.weight"].astype(float)
            for name in ("2_Dense", "3_Dense")
        ]
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        modes = [key for key, value in pooling.items() if key.startswith("pooling_") and value]
        self.pooling = modes[0].removeprefix("pooling_mode_").split("_")[0].removesuffix("token")
        file = folder / "1_Pooling" / "model.safetensors"
        self.queries = load_file(file)["queries"].astype(float) if file.exists() else None

    def vector(self, ids: list[int]) -> np.ndarray:
        """Return the unit vector [dim] of one sequence."""
        config = self.config
        x = self.weights["embed_tokens.weight"][ids] * np.sqrt(config["hidden_size"])
        for i, kind in enumerate(config["layer_types"]):
            x = self._layer(x, f"layers.{i}", is_sliding=kind == "sliding_attention")
        x = self._norm(x, "norm")
        vector = self._pool(x)
        for weight in self.dense:
            vector = weight @ vector
        return vector / np.sqrt((vector**2).sum())

    def _pool(self, x: np.ndarray) -> np.ndarray:
        if self.queries is not None:
            heads, D = self.queries.shape
            parts = []
            for query, values in zip(self.queries, np.split(x, heads, axis=1), strict=True):
                weights = np.exp(x @ query / np.sqrt(D))
                parts.append(weights @ values / weights.sum())
            return np.concatenate(parts)
        return {"mean": x.mean(axis=0), "cls": x[0], "last": x[-1]}[self.pooling]

    def _layer(self, x: np.ndarray, name: str, *, is_sliding: bool) -> np.ndarray:
        attended = self._attention(self._norm(x, f"{name}.input_layernorm"), name, is_sliding)
        x = x + self._norm(attended, f"{name}.post_attention_layernorm")
        h = self._norm(x, f"{name}.pre_feedforward_layernorm")
        gate = h @ self.weights[f"{name}.mlp.gate_proj.weight"].T
        up = h @ self.weights[f"{name}.mlp.up_proj.weight"].T
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        down = (gelu * up) @ self.weights[f"{name}.mlp.down_proj.weight"].T
        return x + self._norm(down, f"{name}.post_feedforward_layernorm")

    def _attention(self, h: np.ndarray, name: str, is_sliding: bool) -> np.ndarray:
        config, L, E = self.config, len(h), self.config["head_dim"]
        heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        base = config["rope_local_base_freq"] if is_sliding else config["rope_theta"]
        project = {
            letter: h @ self.weights[f"{name}.self_attn.{letter}_proj.weight"].T for letter in "qkv"
        }
        results = []
        for head in range(heads):
            key_head = head // (heads // key_heads)
            q = project["q"][:, head * E : (head + 1) * E]
            k = project["k"][:, key_head * E : (key_head + 1) * E]
            v = project["v"][:, key_head * E : (key_head + 1) * E]
            q = self._rotate(self._norm(q, f"{name}.self_attn.q_norm"), base)
            k = self._rotate(self._norm(k, f"{name}.self_attn.k_norm"), base)
            scores = q @ k.T / np.sqrt(config["query_pre_attn_scalar"])
            for i in range(L):
                for j in range(L):
                    if is_sliding and abs(i - j) > config["sliding_window"] // 2:
                        scores[i, j] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            results.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        return np.concatenate(results, axis=1) @ self.weights[f"{name}.self_attn.o_proj.weight"].T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        rms = np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / rms * (1 + self.weights[f"{name}.weight"])

    @staticmethod
    def _rotate(x: np.ndarray, base: float) -> np.ndarray:
        """Turn the pair (i, i + E/2) of token t by t / base^(2i/E)."""
        L, E = x.shape
        result = np.empty_like(x)
        for i in range(E // 2):
            angle = np.arange(L) / base ** (2 * i / E)
            a, b = x[:, i], x[:, i + E // 2]
            result[:, i] = a * np.cos(angle) - b * np.sin(angle)
            result[:, i + E // 2] = b * np.cos(angle) + a * np.sin(angle)
        return result


# The losses, from equations 2 to 5 of arXiv 2509.20354, term by term. Rows are unit vectors.


def contrastive(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    negative_rows: list[int],
    *,
    temperature: float,
    hardness: float,
    same: np.ndarray,
    hardness_cosines: np.ndarray | None = None,
) -> float:
    """Equations 2 and 3; `hardness_cosines` [N] stand where the gradient is stopped."""
    B, total = len(queries), 0.0
    for i in range(B):
        right = np.exp(queries[i] @ positives[i] / temperature)
        denominator = right
        for j in range(B):
            if j != i and not same[i, j]:
                denominator += np.exp(queries[i] @ positives[j] / temperature)
        for n, row in enumerate(negative_rows):
            if row == i:
                cosine = queries[i] @ negatives[n]
                stopped = cosine if hardness_cosines is None else hardness_cosines[n]
                denominator += np.exp(hardness * stopped) * np.exp(cosine / temperature)
        total -= np.log(right / denominator)
    return total / B


def spread_out(queries: np.ndarray, positives: np.ndarray) -> float:
    """Equation 4."""
    B, total = len(queries), 0.0
    for x in (queries, positives):
        for i in range(B):
            for j in range(B):
                if i != j:
                    total += (x[i] @ x[j]) ** 2 / (B * (B - 1))
    return total


def distill(student: np.ndarray, teacher: np.ndarray, distance: str) -> float:
    """One term of equation 5."""
    total = 0.0
    for s, wide in zip(student, teacher, strict=True):
        t = wide[: len(s)] / np.sqrt((wide[: len(s)] ** 2).sum())
        squared = sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
        total += {"l2": np.sqrt(squared), "squared": squared, "cosine": 1 - s @ t}[distance]
    return total / len(student)


def similarity_gap(student: np.ndarray, teacher: np.ndarray) -> float:
    """The mean squared difference of cosines."""
    n = len(student)
    gaps = [student[i] @ student[j] - teacher[i] @ teacher[j] for i in range(n) for j in range(n)]
    return sum(gap**2 for gap in gaps) / n**2
