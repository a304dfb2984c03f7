"""One command line for Google's EmbeddingGemma recipe."""

__version__ = "0.1.0"
