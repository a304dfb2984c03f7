"""The network: layers, pooling, packed sequences, its weights on disk, several processes.

May import: `gemb`.
"""
