"""Other libraries' interfaces for embeddings, each in a few lines over `Model`.

`langchain`, `llama_index`, `chroma`, `sklearn`, and `llm`, which is found by its entry point. Each
can be imported without its library. Questions and documents get their own prompts.
May import: `embedding`, `models`, `errors`, `arrays`.
"""
