# %% [markdown]
# # What speaks for a class, and what against it
#
# A pool with a query a class, trained on the maps of a frozen network in seconds. Everything
# behind the map is linear, so each place has an exact share of each logit: red for the class, blue
# against it. Below each image its likeliest class, and below that the least likely one.

# %%
import timm
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import cross_entropy

import convattn
from convattn.data import generate_cluttered_digits

torch.manual_seed(0)
bundled = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True)
model = timm.create_model("patchconvnet_nano", num_classes=10, global_pool="class").eval()
model.load_state_dict(bundled.state_dict(), strict=False)  # all but the pool
mean, std = (torch.tensor(bundled.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))


def normalised(digits):
    return (digits.images / 255 - mean) / std


# %%
digits = generate_cluttered_digits(400)
with torch.no_grad():
    maps = model.forward_features(normalised(digits))  # (400, 64, 8, 8), once
head = model.head
optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
for _ in range(100):
    loss = cross_entropy(head(maps), digits.labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
test = generate_cluttered_digits(6, split="test")
images = normalised(test)
shares, bias = convattn.evidence(model, images)  # (6, 10, 8, 8) and (10,)
with torch.no_grad():
    logits = model(images)
assert torch.allclose(shares.sum((2, 3)) + bias, logits, atol=1e-3)

# %%
figure, axes = plt.subplots(3, 6, figsize=(9, 4.8), layout="constrained")
for place, columns in enumerate(axes.T):
    likeliest, least = int(logits[place].argmax()), int(logits[place].argmin())
    columns[0].imshow(test.images[place].permute(1, 2, 0).numpy())
    for axis, number in zip(columns[1:], (likeliest, least), strict=True):
        limit = shares[place].abs().max()
        axis.imshow(shares[place, number].numpy(), cmap="seismic", vmin=-limit, vmax=limit)
        axis.set_title(f"{number}: {logits[place, number]:.1f}", fontsize=9)
    for axis in columns:
        axis.axis("off")
figure.savefig("evidence_of_a_class.png", dpi=80)
