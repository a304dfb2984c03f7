"""The PyTorch backend: the reference arithmetic, and what is made of a checkpoint folder."""
