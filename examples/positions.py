# %% [markdown]
# # What a position looks at, and what it knows of where it is
#
# On a map that is the same everywhere only positions can tell places apart. Without any, an
# attention convolution looks everywhere alike; with sines it knows where it stands; with relative
# tables, the papers' choice, only how far away the others are: the pattern moves with the position
# that looks (circle).

# %%
import torch
from matplotlib import pyplot as plt

import convattn

places = ((4, 4), (4, 11), (11, 11))
x = torch.ones(1, 8, 16, 16)

# %%
figure, axes = plt.subplots(3, 3, figsize=(5.4, 5.6), layout="constrained")
for row, position in zip(axes, ("none", "sine", "relative"), strict=True):
    torch.manual_seed(0)
    layer = convattn.AAConv2d(8, 8, 3, padding=1, num_heads=1, position=position, feat_size=16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)  # as after training: random ones hardly differ from each other
        looks = layer.attention_weights(x, queries=places)[0, 0]  # (3, 256)
    for axis, look, (y, x_) in zip(row, looks, places, strict=True):
        axis.imshow(look.view(16, 16).numpy(), cmap="magma", vmin=0)
        axis.plot(x_, y, "o", color="white", markeredgecolor="black", markersize=7)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(position)
figure.savefig("positions.png", dpi=80)
