"""Google's EmbeddingGemma recipe as one command line, and as a few Python objects.

from gemb import Model, Index      a model, and an index
gemb.search(question, paths)       files that answer a question

`gemb help python` shows them. They are loaded when they are first used: `import gemb` loads no
numpy. `backend` is what a plugin of a backend overrides, `plugins` finds it, `errors` has the exit
codes.
"""

__version__ = "0.1.0"

# Name -> the module that has it. `gemb.search` is the package itself, which can be called.
_HOMES = {
    "Model": "gemb.embedding.model",
    "Index": "gemb.search.interface",
    "SearchHit": "gemb.search.interface",
    "SearchHits": "gemb.search.interface",
    "ModelProfile": "gemb.models.profile",
    "GembError": "gemb.errors",
}


def __getattr__(name: str) -> object:
    """Return one of the names above, loaded now."""
    from importlib import import_module

    if name == "search":
        return import_module("gemb.search")
    if name not in _HOMES:
        raise AttributeError(f"module 'gemb' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return what the module has, and what it loads when it is first used."""
    return sorted({*globals(), *_HOMES, "search"})
