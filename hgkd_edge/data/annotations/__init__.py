"""Images with boxes (COCO, Pascal VOC, YOLO, LabelMe) or with a class for every pixel.

An annotation that is wrong is skipped and reported with its file and line;
only data of which nothing can be used are an error.
"""

from .opening import open_boxes, open_masks

__all__ = ["open_boxes", "open_masks"]
