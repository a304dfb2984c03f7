"""Runs and what goes with them, without a tensor library.

`chain_run` runs the stages of a chain, `teachers` give vectors to learn from, `mining` finds hard
negatives.
May import: `weights`, `search`, and what they may import.
"""
