# %% [markdown]
# # What a pool costs
#
# Parameters of every pool on a map of 512 channels: from none to millions. `residual` is the
# default.

# %%
from matplotlib import pyplot as plt

import convattn

counts = {}
for name in convattn.POOLS:
    more = {"num_classes": 10} if name == "class" else {}
    pool = convattn.create_pool(name, 512, **more)
    counts[name] = sum(parameter.numel() for parameter in pool.parameters())

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
bars = axes.barh(list(counts), list(counts.values()))
axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=3, fontsize=9)
axes.set(xscale="symlog", xlabel="parameters at 512 channels", xlim=(0, 3e8))
axes.invert_yaxis()
figure.savefig("what_pools_cost.png", dpi=80)
