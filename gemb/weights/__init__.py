"""Files made of a model's weights, each measured before it gets its name.

`export` writes a GGUF file, `quantize` writes a smaller one, `soup` averages checkpoints.
May import: `evaluation`, `index`, and what they may import.
"""
