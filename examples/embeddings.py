# %% [markdown]
# # Images as vectors
#
# What the network makes of an image before its classifier is a vector, and like images have like
# ones: 200 digits by their two largest principal components. `convattn predict RUN FOLDER
# --embeddings FILE.npy` writes them for a folder.

# %%
import timm
import torch
from matplotlib import pyplot as plt

import convattn  # noqa: F401  (registers the model)
from convattn.data import generate_cluttered_digits

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(200, split="test")
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
with torch.no_grad():
    maps = model.forward_features((digits.images / 255 - mean) / std)
    vectors = model.forward_head(maps, pre_logits=True)  # (200, 64)

# %%
centred = vectors - vectors.mean(0)
_, _, directions = torch.linalg.svd(centred, full_matrices=False)
flat = centred @ directions[:2].T  # (200, 2)
flat *= flat[flat.abs().argmax(0), [0, 1]].sign()  # whose largest coordinates are positive
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
for label in range(10):
    these = flat[digits.labels == label]
    axes.scatter(*these.T, s=16, color=f"C{label}", label=str(label))
axes.set(xticks=[], yticks=[])
axes.legend(ncols=2, fontsize=8)
figure.savefig("embeddings.png", dpi=80)
