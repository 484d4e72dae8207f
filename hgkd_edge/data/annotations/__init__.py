"""Images with boxes (COCO, Pascal VOC, YOLO, LabelMe) or with a class for every pixel.

A wrong annotation is skipped and reported with its file and line. It is an error only if nothing in
the data set can be used.
"""

from .opening import open_boxes, open_masks

__all__ = ["open_boxes", "open_masks"]
