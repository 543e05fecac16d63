# %% [markdown]
# # The layers in a network and a loop of your own
#
# An attention convolution where a convolution stood, learned aggregation where pool and classifier
# stood, trained by plain PyTorch on scikit-learn's digits of 8 x 8 pixels for some seconds.

# %%
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import convattn

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    convattn.AAConv2d(16, 48, 3, padding=1, num_heads=2, feat_size=8),
    nn.BatchNorm2d(48),
    nn.ReLU(),
    convattn.LearnedAggregation2d(48, num_classes=10, layer_scale=1.0),
)

# %%
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
losses = []
for step in range(60):
    batch = torch.arange(50) + step % 30 * 50  # the first 1,500, twice
    loss = cross_entropy(network(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
network.eval()
with torch.no_grad(), convattn.capture_attention(network) as maps:
    right = (network(images[1500:]).argmax(1) == labels[1500:]).float().mean()
looks = maps["6"][:, 0, 0]  # (297, 8, 8): where the token of learned aggregation looks

# %%
figure, axes = plt.subplot_mosaic("LLabcd;LLefgh", figsize=(9, 3), layout="constrained")
axes["L"].plot(losses)
axes["L"].set(xlabel="step", ylabel="loss", title=f"{right:.0%} of 297 unseen digits right")
for place, (above, below) in enumerate(zip("abcd", "efgh", strict=True)):
    axes[above].imshow(images[1500 + place, 0].numpy(), cmap="gray")
    axes[below].imshow(looks[place].numpy(), cmap="magma")
    axes[above].axis("off")
    axes[below].axis("off")
figure.savefig("a_network_of_your_own.png", dpi=80)
