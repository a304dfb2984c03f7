"""Smaller models: fewer layers, fewer tokens.

May import: `model`.
"""
