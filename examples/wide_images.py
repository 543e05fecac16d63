# %% [markdown]
# # One look at a wide image
#
# The network was trained on squares of 64 pixels. It takes any size: three images side by side are
# one of 64 x 192. `view="whole"` shows it all of the image, where the default would crop the
# middle of a less wide one, and a cell of the map lies where its receptive field is centred.

# %%
import timm
import torch
from matplotlib import pyplot as plt

import convattn
from convattn.data import generate_cluttered_digits

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(8, split="test")
wide = torch.cat(list(digits.images[4:7]), dim=2)  # (3, 64, 192)

# %%
found = convattn.explain(model, wide, view="whole")
figure, (above, below) = plt.subplots(2, 1, figsize=(6, 4.2), layout="constrained")
above.imshow(found.image)
below.imshow(found.overlay())
above.set_title(f"labels {digits.labels[4:7].tolist()}, taken for {found.top[0].name}")
above.axis("off")
below.axis("off")
figure.savefig("wide_images.png", dpi=80)
