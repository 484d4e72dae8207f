"""Two teachers that no recipe names: a published one, and one trained on your own images."""

# %% Settings
IMAGES = "photos"  # {train,test}/<class>/*.jpg, to compare the students by k-NN
TEACHER = {
    "name": "vit_base_patch16_clip_224.openai",  # a ViT, BEiT, DINOv2/v3, EVA or CLIP image tower
    "weights": "hub",
}
OWN_TEACHER = {
    "name": "vit_small_patch16_224",
    "weights": "pretrain",  # masked autoencoding on your images; no labels, no license
    "pretrain": {"epochs": 400},
}
STUDENT = {"name": "resnet18"}
SIZE = 224
TRAIN = {"epochs": 50, "batch_size": 256}

# %% One recipe, two teachers. The settings are those that docs/results.md recommends.
import hgkd_edge


def recipe(name, teacher):
    """A recipe as a mapping; `hgkd-edge recipes new` writes one as a file."""
    return {
        "name": name,
        "data": {"path": IMAGES, "image_size": SIZE},
        "teacher": teacher,
        "student": STUDENT,
        "mask": {"ratio": 0},
        "loss": {"embedding_weight": 1.0},
        "train": TRAIN,
    }


# %% Distill from both
runs = {
    name: hgkd_edge.distill(recipe(name, teacher))
    for name, teacher in (("published", TEACHER), ("own", OWN_TEACHER))
}

# %% Compare the students: k-NN and linear probe on held-out images
for name, run in runs.items():
    scores = run.evaluate(features=True)
    knn = {network: scores[network]["knn"] for network in ("distilled", "untrained")}
    print(f"{name}: k-NN {knn['distilled']:.3f}, untrained {knn['untrained']:.3f}")
