# %% [markdown]
# # A map that ignores the weights
#
# If a network with random weights has the same map as the trained one, the map shows the image and
# not what was learnt. Here it does not: the trained network looks at the digit, its twin anywhere,
# and the maps' ranks hardly agree.

# %%
import timm
import torch
from matplotlib import pyplot as plt
from scipy.stats import spearmanr

import convattn
from convattn.data import generate_cluttered_digits

torch.manual_seed(0)
trained = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
twin = timm.create_model("patchconvnet_nano", num_classes=10).eval()
images = generate_cluttered_digits(3, split="test").images

# %%
figure, axes = plt.subplots(2, 3, figsize=(6, 4.6), layout="constrained")
for image, (above, below) in zip(images, axes.T, strict=True):
    found, random = convattn.explain(trained, image), convattn.explain(twin, image)
    above.imshow(found.overlay())
    below.imshow(random.overlay())
    agreement = spearmanr(found.map.flatten(), random.map.flatten()).statistic
    below.set_title(f"rank correlation {agreement:.2f}", fontsize=10)
    above.axis("off")
    below.axis("off")
axes[0, 1].set_title("trained, and below it random weights", fontsize=10)
figure.savefig("random_weights.png", dpi=80)
