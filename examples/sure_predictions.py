# %% [markdown]
# # Keep what is sure
#
# The surer the network, the more often it is right: what share of the test images is kept from
# each probability on, and how many of those are right. `finetune` chooses the probability by
# validation images; `predict --reject-below auto` uses it.

# %%
import timm
import torch
from matplotlib import pyplot as plt

import convattn  # noqa: F401  (registers the model)
from convattn.data import generate_cluttered_digits

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(300, split="test")
mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
with torch.no_grad():
    probabilities, said = model((digits.images / 255 - mean) / std).softmax(1).max(1)
right = (said == digits.labels).float()

# %%
limits = torch.linspace(0.3, 0.99, 70)
kept = [float((probabilities >= limit).float().mean()) for limit in limits]
accuracy = [float(right[probabilities >= limit].mean()) for limit in limits]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
axes.plot(limits, kept, label="kept")
axes.plot(limits, accuracy, label="right, of those kept")
axes.set(xlabel="smallest probability that is kept", ylabel="share of 300 images")
axes.legend()
figure.savefig("sure_predictions.png", dpi=80)
