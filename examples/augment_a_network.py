# %% [markdown]
# # Attention for a trained network, and nothing lost
#
# `augment` puts attention into a network whose logits stay what they were, until it is trained on.
# The dots lie on the line; after a few steps with `param_groups` the new layers have begun to
# matter.

# %%
import timm
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import cross_entropy

import convattn

torch.manual_seed(0)
plain = timm.create_model("resnet10t", num_classes=4).eval()  # yours: pretrained=True, or a file
model = convattn.augment(plain, pool="attention", conv="last-1-stage", input_size=64).eval()
images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 4
with torch.no_grad():
    before, after = plain(images).flatten(), model(images).flatten()

# %%
optimizer = torch.optim.AdamW(convattn.param_groups(model, lr=1e-4, new_lr_scale=10))
for _ in range(3):
    loss = cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    trained = model(images).flatten()

# %%
figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
axes.axline((before.min(), before.min()), slope=1, color="lightgrey")
axes.scatter(before, trained, s=14, color="C1", label="three steps later")
axes.scatter(before, after, s=10, color="C0", label="augmented")
axes.set(xlabel="logit of the plain network", ylabel="logit of the augmented one")
axes.legend()
figure.savefig("augment_a_network.png", dpi=80)
