"""What a distilled backbone is for: classification, segmentation, detection.

Each task is one module with one `VisionTask`; `hgkd_edge.finetune` knows them by name only.
"""
