"""The checkpoints that the authors of PatchConvNet released."""

from __future__ import annotations

from dataclasses import dataclass

_FOLDER = "https://dl.fbaipublicfiles.com/deit/"
_ONE_K, _MANY = "fb_in1k", "fb_in22k_ft_in1k"


@dataclass(frozen=True)
class Release:
    """A released file, and what its authors say of it."""

    model: str
    """Our name of the network."""
    tag: str
    """What it was trained on, as timm's tags say it."""
    file: str
    """Name of the file."""
    pixels: int
    """Height and width of the images that it was made for."""
    top1: float
    """Per cent of ImageNet's validation images that it names right; the authors' figure."""
    peak_mb: int | None = None
    """Megabytes on a V100 at inference; the authors' figure."""
    images_per_second: int | None = None
    """Of that V100; the authors' figure."""

    @property
    def name(self) -> str:
        """As ``timm.create_model`` takes it."""
        return f"{self.model}.{self.tag}"

    @property
    def url(self) -> str:
        """Where it is downloaded from."""
        return f"{_FOLDER}{self.file}"


# The authors' README_patchconvnet.md; the first of each network is its default.
_ALL = (
    Release("patchconvnet_s60", _ONE_K, "s60_224_1k.pth", 224, 82.1, 1322, 1129),
    Release("patchconvnet_s60", _MANY, "s60_224_21k.pth", 224, 83.5, 1322, 1129),
    Release("patchconvnet_s60", f"{_MANY}_384", "s60_384_21k.pth", 384, 84.9, 3604, 388),
    Release("patchconvnet_s60", f"{_MANY}_512", "s60_512_21k.pth", 512, 85.4, 6296, 216),
    Release("patchconvnet_s120", _ONE_K, "s120_224_1k.pth", 224, 83.2, 1450, 580),
    Release("patchconvnet_b60", _ONE_K, "b60_224_1k.pth", 224, 83.5, 2790, 541),
    Release("patchconvnet_b60", _MANY, "b60_224_21k.pth", 224, 85.4, 2790, 541),
    Release("patchconvnet_b60", f"{_MANY}_384", "b60_384_21k.pth", 384, 86.5, 7067, 185),
    Release("patchconvnet_b120", _ONE_K, "b120_224_1k.pth", 224, 84.1, 3314, 280),
    Release("patchconvnet_b120", _MANY, "b120_224_21k.pth", 224, 86.0, 3314, 280),
    Release("patchconvnet_b120", f"{_MANY}_384", "b120_384_21k.pth", 384, 86.9, 7587, 96),
    Release("patchconvnet_s60_multi", _ONE_K, "s60_multi_finetune_1k.pth", 224, 82.0),
    Release("patchconvnet_s60_multi", f"{_ONE_K}_scratch", "s60_multi_scratch_1k.pth", 224, 81.1),
)

RELEASES: dict[str, Release] = {release.name: release for release in _ALL}
"""Every released checkpoint by its name and tag."""
