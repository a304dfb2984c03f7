"""The settings of a run: the keys of a recipe, its YAML, its checks, chains, the run's folder.

`schema` has every key, `file` reads and writes a recipe, `chain` joins stages. msgspec is imported
with `schema`; `names` and `layers`, which every command loads, do not import it.
May import: `models`, `texts`, `io`, `errors`, `arrays`.
"""
