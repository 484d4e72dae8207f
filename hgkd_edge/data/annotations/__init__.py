"""Images with boxes (COCO, Pascal VOC, YOLO, LabelMe) or with a class for every pixel.

A fault of a single annotation is reported with its file and line, and the annotation is skipped;
only data of which nothing can be used are an error.
"""

from .sources import open_boxes, open_masks

__all__ = ["open_boxes", "open_masks"]
