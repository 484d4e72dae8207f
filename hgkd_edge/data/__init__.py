"""Images in, batches out: sources and augmentation."""
