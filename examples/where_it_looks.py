# %% [markdown]
# # Where a network looks
#
# The network that the package brings, on four test images. Its attention pool says where it
# looked; the map is laid on the original image, and `overlay` colours it.

# %%
import timm
from matplotlib import pyplot as plt

import convattn
from convattn.data import generate_cluttered_digits

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(4, split="test")

# %%
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for image, label, (above, below) in zip(digits.images, digits.labels, axes.T, strict=True):
    found = convattn.explain(model, image)
    above.imshow(found.image)
    below.imshow(found.overlay())
    above.set_title(f"a {label}, taken for a {found.top[0].name}", fontsize=10)
    above.axis("off")
    below.axis("off")
figure.savefig("where_it_looks.png", dpi=80)
