"""Distillation: what a frozen Transformer infers becomes what a sparse CNN predicts."""
