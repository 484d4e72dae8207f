"""Segment images: distill on all of them, fine-tune on those that have masks."""

# %% Settings
IMAGES = "photos"  # all images; masks are not needed
LABELED = "masks"  # images and masks: docs/data.md lists the formats
RECIPE = "resnet18_dinov2_s"
DISTILL = {"data.path": IMAGES}
FINETUNE = {"segment.binary": False}  # True: every number above 0 is one class, such as nuclei
PREDICT = IMAGES

# %% Distill, then fine-tune
import hgkd_edge

run = hgkd_edge.distill(RECIPE, DISTILL)
run = run.finetune("segment", LABELED, overrides=FINETUNE)
print(run)

# %% The same settings without distillation, to see what it brought
scratch = run.finetune("segment", LABELED, init="scratch", overrides=FINETUNE)
for name, each in (("distilled", run), ("from scratch", scratch)):
    print(f"{name}: mIoU {each.finetuned['scores']['miou']:.3f}")

# %% Predictions: the share of each class, and the class of every pixel
first = run.predict(PREDICT)[0]
print(first)
print(first.label_map.shape, first.label_map.dtype)
first.picture.save(run.path / "first.png")

# %% A file that takes camera frames (uint8) and returns class numbers
run.export(bake_preprocessing=True, bake_postprocessing=True)
file = sorted((run.path / "export").glob("*-baked.onnx"))
print(file)
