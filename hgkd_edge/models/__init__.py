"""Networks: the masked-autoencoder and teacher Transformers, the student and its decoder."""
