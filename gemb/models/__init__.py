"""A model on disk: its reference, the hub's cache, a folder, a GGUF file.

`references` finds a model by name, `checkpoint` reads a folder, `gguf` reads a GGUF file.
May import: `io`, `errors`, `arrays`.
"""
