"""Encoder-decoder adaptation of a decoder checkpoint by UL2's denoising.

May import: `train`, `cut`, `model`.
"""
