# %% [markdown]
# # Does the network need what the map shows?
#
# Take the hottest pixels away: the class should go. Bring them back first: it should come. Random
# pixels are the yardstick. `convattn explain RUN --truth` does this and more, with intervals and a
# verdict.

# %%
import timm
import torch
from matplotlib import pyplot as plt

import convattn  # noqa: F401  (registers the model)
from convattn.data import generate_cluttered_digits
from convattn.explanation import attention_maps, deletion_insertion

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(16, split="test")
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
images = (digits.images / 255 - mean) / std

# %%
logits, maps, grid = attention_maps(model, images)
torch.manual_seed(0)
heats = {"attention": grid.heat(maps), "random pixels": torch.rand(16, 64, 64)}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
for name, heat in heats.items():
    curves = deletion_insertion(model, images, heat, logits.argmax(1))
    share = torch.linspace(0, 1, curves.deletion.shape[1])
    left.plot(share, curves.deletion.mean(0), label=name)
    right.plot(share, curves.insertion.mean(0), label=name)
left.set(title="deletion", xlabel="share of pixels taken away", ylabel="probability of the class")
right.set(title="insertion", xlabel="share of pixels brought back")
left.legend()
figure.savefig("believe_a_map.png", dpi=80)
