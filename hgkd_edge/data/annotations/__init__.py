"""Photos with boxes (COCO JSON, Pascal VOC XML) or with a class for every pixel (masks, COCO).

What is wrong with a single annotation is told with its file and line, and the annotation left out;
only data of which nothing can be used are an error.
"""

from .sources import open_boxes, open_masks

__all__ = ["open_boxes", "open_masks"]
