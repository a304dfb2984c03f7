"""The llama.cpp backend: GGUF files, written and run."""
