"""Contrastive training and distillation: batches, losses, gradients, steps, checkpoints.

May import: `cut`, `model`.
"""
