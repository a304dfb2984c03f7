"""What a run is told: the keys of a recipe, its YAML, its checks, chains, the run's folder.

`schema` has every key, `file` reads and writes a recipe, `chain` joins stages.
May import: `models`, `texts`, `io`, `errors`, `arrays`.
"""
