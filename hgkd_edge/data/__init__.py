"""Images in, batches out: sources, augmentation, mask sampling."""
