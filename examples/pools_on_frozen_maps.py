# %% [markdown]
# # Two pools on the same frozen maps
#
# The maps of a frozen network are made once, and pools are trained on them side by side: `convattn
# probe` does this with all pools, learning rates that are chosen, several seeds and intervals.
# This is the idea in thirty lines.

# %%
import timm
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.nn.functional import cross_entropy

import convattn
from convattn.data import generate_cluttered_digits

torch.manual_seed(0)
model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))


def maps_of(digits):
    """The frozen network's last maps."""
    with torch.no_grad():
        return model.forward_features((digits.images / 255 - mean) / std)


train, test = generate_cluttered_digits(400), generate_cluttered_digits(200, split="test")
train_maps, test_maps = maps_of(train), maps_of(test)  # (400, 64, 8, 8), (200, 64, 8, 8)

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name in ("avg", "residual"):
    head = nn.Sequential(convattn.create_pool(name, 64), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    accuracy = []
    for _ in range(100):
        loss = cross_entropy(head(train_maps), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = head(test_maps).argmax(1) == test.labels
        accuracy.append(100 * right.float().mean())
    axes.plot(accuracy, label=name)
axes.set(xlabel="step", ylabel="test images right, %", title="same maps, two pools")
axes.legend()
figure.savefig("pools_on_frozen_maps.png", dpi=80)
