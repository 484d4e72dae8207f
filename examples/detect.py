"""Find objects: distill on all images, fine-tune on those with boxes, read the boxes."""

# %% Settings
IMAGES = "photos"  # all images; boxes are not needed
LABELED = "boxes"  # YOLO, COCO, Pascal VOC, LabelMe: docs/data.md
RECIPE = "resnet18_dinov2_s"
DISTILL = {"data.path": IMAGES}
FINETUNE = {"train.epochs": 50}
PREDICT = IMAGES
THRESHOLD = 0.4  # lowest score of a box

# %% Distill, then fine-tune
import hgkd_edge

run = hgkd_edge.distill(RECIPE, DISTILL)
run = run.finetune("detect", LABELED, overrides=FINETUNE)
print(run)

# %% Export, and open the exported file as an edge device does: no PyTorch is needed for it
exported = run.export()
model = hgkd_edge.load_model(exported["files"][0]["path"])
print(model.task, model.classes, model.runtime)

# %% Boxes in pixels of the image
for prediction in model.predict(PREDICT, threshold=THRESHOLD):
    for box in prediction.boxes:
        print(prediction.photo, box.name, f"{box.score:.2f}", [round(side) for side in box.box])

# %% The exported file scores what the network scored
print(run.evaluate())
print(run.evaluate(exported["files"][0]["path"]))
