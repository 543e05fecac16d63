"""What is tested, and what is predicted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from convattn.config.data import DataConfig
from convattn.config.numbers import check_numbers, require_share


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is tested, on what, and where the results go."""

    weights: str | None = None
    """Weights of a model that is given by name; None takes its released ones."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format; bfloat16 is autocast's, over the weights as they are."""
    channels_last: bool = False
    """Keep kernels channels-last, which is faster on recent GPUs."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    threshold: float = 0.5
    """Detection: least score of a box that the confusion matrix counts, from 0 to 1."""
    allow_missing_classes: bool = False
    """ImageNet: test on the classes that are there; the network chooses among all it knows."""
    real: str | None = None
    """ImageNet: ReaL's real.json; None takes the one in data.root, else timm's copy."""
    out: str | None = None
    """Folder to make; None takes the run's own for its own test, else runs/evaluate/NAME or
    NAME-2 ..."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images; see DataConfig."""

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)
        check_numbers(self)


_EMBEDDINGS = (".npy", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a trained network's predictions of images are made and kept."""

    threshold: float = 0.5
    """Detection: least score of what is drawn and written, from 0 to 1."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    tile: int | None = None
    """Detection: side in pixels of the overlapping tiles that large images are cut into, each seen
    at its own scale; None: whole."""
    flip: bool = False
    """Detection and segmentation: also look at the mirrored image; of detectors boxes alone."""
    every: int | None = None
    """Detection and segmentation: of a video, look at one frame of this many; None: at all."""
    out: str | None = None
    """Folder to make, or classification: FILE.csv for a table with a row an image; None makes
    predicted, or predicted-2 where that is taken."""
    embeddings: str | None = None
    """With FILE.csv: also write this .npy or .safetensors, what the classifier layer reads of each
    of its rows."""
    reject_below: float | Literal["auto"] | None = None
    """With FILE.csv: add the column rejected, true where the probability is below this; auto: below
    what convattn finetune chose by validation images."""
    batch_size: int = 64
    """With FILE.csv: images that are computed at a time."""
    num_workers: int | None = None
    """With FILE.csv: processes that read images; None takes one a core if there are many images."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)
        if self.embeddings is not None and not self.embeddings.endswith(_EMBEDDINGS):
            raise ValueError(
                f"embeddings={self.embeddings!r} must end in {' or '.join(_EMBEDDINGS)}"
            )
        if isinstance(self.reject_below, int | float) and not 0 < self.reject_below <= 1:
            raise ValueError(
                f"reject_below={self.reject_below} must lie above 0 and at most at 1, or be auto"
            )
        check_numbers(self)

    @property
    def makes_table(self) -> bool:
        """Whether ``out`` is a table instead of a folder."""
        return self.out is not None and self.out.lower().endswith(".csv")
