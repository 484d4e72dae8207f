"""The sparse engine alone: any timm CNN on the visible patches of masked images."""

# %% Settings
NAME = "resnet50"
SIZE = 224
BATCH = 16
VISIBLE = 0.4  # share of the patches
REPEATS = 5

# %% Convert: parameters are shared with the timm model, not copied
import time

import timm
import torch

from hgkd_edge.sparse import densify, sparsify

model = timm.create_model(NAME, features_only=True)
encoder = sparsify(model, backend="tiles")
print(f"patches of {encoder.patch} px, maps at strides {encoder.reductions}")

# %% A mask, True = visible, and the maps: zero where masked
images = torch.rand(BATCH, 3, SIZE, SIZE)
grid = SIZE // encoder.patch
visible = torch.rand(BATCH, grid, grid) < VISIBLE
visible[:, 0, 0] = True  # at least one patch
maps = encoder(images, visible)
print([tuple(features.shape) for features in maps])

# %% Masked pixels never influence a visible feature
changed = torch.where(
    visible.repeat_interleave(encoder.patch, 1).repeat_interleave(encoder.patch, 2)[:, None],
    images,
    torch.rand_like(images),
)
same = all(torch.equal(a, b) for a, b in zip(maps, encoder(changed, visible), strict=True))
print(f"other pixels behind the mask, same features: {same}")


# %% Time of a training step, sparse and dense
def step(network, *inputs):
    """Seconds of a forward and backward pass: the best of several."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        sum(features.square().mean() for features in network(*inputs)).backward()
        times.append(time.perf_counter() - begun)
    return min(times)


sparse, dense = step(encoder, images, visible), step(model, images)
print(f"sparse {1e3 * sparse:.0f} ms, dense {1e3 * dense:.0f} ms: {sparse / dense:.2f} of the time")

# %% After training it is the plain timm network again
plain = densify(encoder)
timm.create_model(NAME, features_only=True).load_state_dict(plain.state_dict())
