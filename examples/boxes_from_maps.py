# %% [markdown]
# # A box out of a map
#
# Nobody showed the network a box. What is hotter than a sixth of the hottest pixel is one all the
# same: green, beside the digit's true box in white, and how much they overlap.

# %%
import numpy as np
import timm
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import convattn
from convattn.data import generate_cluttered_digits

model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
digits = generate_cluttered_digits(8, split="test")


def box_of(heat):
    """xmin, ymin, xmax, ymax of the pixels that are hotter than a sixth of the hottest."""
    rows, columns = np.nonzero(heat > heat.max() / 6)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def overlap(first, second):
    """Intersection over union."""
    left, top = np.maximum(first[:2], second[:2])
    right, bottom = np.minimum(first[2:], second[2:])
    shared = max(right - left, 0) * max(bottom - top, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


# %%
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for image, true, place in zip(digits.images, digits.boxes.numpy(), axes.flat, strict=True):
    found = convattn.explain(model, image)
    ours = box_of(found.heat)
    place.imshow(found.image)
    for (xmin, ymin, xmax, ymax), colour in ((true, "white"), (ours, "lime")):
        place.add_patch(
            Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, color=colour, lw=2)
        )
    place.set_title(f"overlap {overlap(np.array(ours), true):.2f}", fontsize=10)
    place.axis("off")
figure.savefig("boxes_from_maps.png", dpi=80)
