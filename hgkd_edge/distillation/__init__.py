"""Distillation: a sparse CNN learns to predict the features of a frozen Transformer."""
