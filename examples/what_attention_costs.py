# %% [markdown]
# # What attention in the convolutions costs
#
# Multiply-adds of a ResNet-18, as it is, with the attention pool, and with attention in the
# convolutions of its last two stages, by the image's side. Counted without computing anything;
# `convattn bench` measures time and memory, too.

# %%
import timm
from matplotlib import pyplot as plt

import convattn
from convattn.bench import count

networks = {
    "ResNet-18": {},
    "attention pool": {"pool": "attention"},
    "attention in two stages": {"conv": "last-2-stages"},
}
sides = (96, 192, 288)

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, options in networks.items():
    model = timm.create_model("resnet18")
    if options:
        model = convattn.augment(model, **options)
    macs = [count(model, (3, side, side)).macs / 1e9 for side in sides]
    axes.plot(sides, macs, "--o" if name == "attention pool" else "-o", label=name)
axes.set(xlabel="side of the image, pixels", ylabel="multiply-adds, billions")
axes.legend()
figure.savefig("what_attention_costs.png", dpi=80)
