"""One command line for Google's EmbeddingGemma recipe.

`backend` is what a plugin of a backend overrides, `plugins` finds it, `errors` has the exit codes.
"""

__version__ = "0.1.0"
