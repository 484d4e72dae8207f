"""From a folder of photos to a folder that runs on a Jetson."""

# %% Settings
PHOTOS = "photos"  # {train,test}/<class>/*.jpg; images without a class are used for distillation
RECIPE = "resnet18_dinov2_s"  # hgkd-edge recipes list
# The cache and one update per view: for up to some 10,000 images.
DISTILL = {"data.path": PHOTOS, "teacher.cache": 16, "mask.per_image": 1}
FINETUNE = {"train.epochs": 50}
PRECISION = "fp16"
JETSON = None  # "nvidia@orin" also measures on the device, over SSH
UPDATES = 300  # of the check

# %% Does a student learn from this teacher on these photos?
import hgkd_edge

checked = hgkd_edge.check(RECIPE, DISTILL, updates=UPDATES)
print(checked)

# %% Distill: no labels are used. Interrupt and run the cell again: it continues.
run = hgkd_edge.distill(RECIPE, DISTILL, run=checked["run"], resume=True)
print(run)

# %% Train the distilled backbone with the labels, and look at its predictions
run = run.finetune("classify", PHOTOS, overrides=FINETUNE)
print(run.evaluate())
found = run.predict(f"{PHOTOS}/test")
print(found)

# %% The first prediction as a picture; in a notebook `found` shows twelve
found[0].picture.save(run.path / "first.png")

# %% Export: every file is compared with the one it was made from; the bundle is for the Jetson
exported = run.export(precision=PRECISION, bundles=("jetson",))
print(exported)

# %% How fast is it? On this machine, and on the Jetson
print(run.bench(device="jetson", host=JETSON) if JETSON else run.bench(duration_s=1.0))

# %% One page with everything
print(run.report())
