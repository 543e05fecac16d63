# %% [markdown]
# # Boxes and masks to practise on
#
# `generate_scenes` makes images with up to five digits each, their boxes and their masks, without
# a download: what `convattn train cluttered_digits_retinanet`, `..._mask_rcnn` and `..._upernet`
# learn.

# %%
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from convattn.data import generate_scenes

scenes = generate_scenes(4, split="test")

# %%
figure, axes = plt.subplots(2, 4, figsize=(8, 4.3), layout="constrained")
for place, (above, below) in enumerate(axes.T):
    boxes, labels, masks = scenes.objects(place)
    above.imshow(scenes.images[place].permute(1, 2, 0).numpy())
    for (xmin, ymin, xmax, ymax), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        size = (xmax - xmin, ymax - ymin)
        above.add_patch(Rectangle((xmin, ymin), *size, fill=False, color="white"))
        above.text(xmin, ymin - 2, str(label - 1), color="white", fontsize=9)
    below.imshow(
        scenes.semantic(place).numpy(), cmap="tab20", vmin=0, vmax=19, interpolation="nearest"
    )
    above.axis("off")
    below.axis("off")
figure.savefig("boxes_and_masks.png", dpi=80)
