"""Any map of any network, a pool of ``convattn.POOLS`` on it, and a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
import torchvision
from timm.models import load_pretrained, register_model, resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from convattn.layers import LearnedAggregation2d, Pool
from convattn.models.pooling import PooledClassifier
from convattn.modes import eval_mode
from convattn.text import nearest, one_line

TORCHVISION = "torchvision/"
"""What the name of a network of torchvision's begins with."""
LAST = "last"
"""The map that a network's own pool reads."""

_STAGE = "stage"
_MAP = "map"  # what the one output of an extractor is called
_OF_TIMMS_BUILDER = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
)


def check_known(name: str) -> None:
    """Refuse a name of no network.

    Args:
        name: As of ``create_backbone``.

    Raises:
        ValueError: With the nearest name.
    """
    if name.startswith(TORCHVISION):
        known = [TORCHVISION + own for own in torchvision.models.list_models(torchvision.models)]
        is_known = name in known
    else:
        known, is_known = timm.list_models(), timm.is_model(name)
    if not is_known:
        raise ValueError(f"unknown model {name!r}; the nearest is {nearest(name, known)!r}")


def create_backbone(
    name: str, *, pretrained: bool = False, in_chans: int = 3, **arguments: Any
) -> nn.Module:
    """A network of timm's, ours among them, or of torchvision's, whole.

    Args:
        name: As in timm's registry, or ``torchvision/`` and a name of torchvision's.
        pretrained: Load released weights.
        in_chans: Channels of the images.
        **arguments: Of the network.

    Raises:
        ValueError: If there is no such network.
    """
    check_known(name)
    if not name.startswith(TORCHVISION):
        return cast(
            nn.Module,
            timm.create_model(
                name, pretrained=pretrained, num_classes=0, in_chans=in_chans, **arguments
            ),
        )
    if in_chans != 3:
        raise ValueError(
            f"{name} takes images of 3 channels, and these have {in_chans}; take a network of "
            "timm's, for example resnet18"
        )
    with warnings.catch_warnings():
        # Inception and GoogLeNet announce how they will initialise one day.
        warnings.filterwarnings("ignore", category=FutureWarning)
        model: nn.Module = torchvision.models.get_model(
            name.removeprefix(TORCHVISION), weights="DEFAULT" if pretrained else None, **arguments
        )
    return model


class MapBackbone(nn.Module):
    """What of a network is needed for one of its maps.

    Args:
        network: A classifier of timm's, or any that ``torch.fx`` can trace.
        layer: ``last``: the map that its own pool reads. ``stage1``, ``stage2`` ...: timm's levels
            from a quarter of the image's side on (``stage4`` is that of a thirty-second); blocks of
            a network of one stride. Or the name of a module, whose output is taken.

    Attributes:
        layer: As given; of a network that is not timm's, the name that ``last`` stands for.
        num_features: Channels of the map.

    Shape:
        (B, C, H, W) -> (B, num_features, h, w).

    Raises:
        ValueError: If the network has no such map; says what it gives.
    """

    def __init__(self, network: nn.Module, layer: str = LAST, *, image: Tensor) -> None:
        super().__init__()
        self.layer = layer
        of_timm = hasattr(network, "forward_features")
        if layer == LAST and of_timm:
            self.body: nn.Module = _LastMap(network)
        elif layer.startswith(_STAGE) and layer.removeprefix(_STAGE).isdigit():
            self.body = _stage(network, layer)
        else:
            self.layer = _last_node(network, image) if layer == LAST else layer
            self.body = _extractor(network, self.layer)
        made = _run(self, image)
        _check_map(made, network, layer, image)
        self.num_features = made.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features, h, w)."""
        made = self.body(x)
        if isinstance(made, Mapping):
            made = made[_MAP]
        elif isinstance(made, list | tuple):
            (made,) = made
        return cast(Tensor, made)


class _LastMap(nn.Module):
    """A network of timm's without its head; a map with its channels last is turned."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if any(isinstance(module, LearnedAggregation2d | Pool) for module in network.modules()):
            # Behind the map, and so never called: nobody shall ask for its attention.
            cast(Any, network).reset_classifier(0, "")
        self.model = network
        self.turned = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = cast(Any, self.model).forward_features(x)
        return made.permute(0, 3, 1, 2) if self.turned else made


def stages_of(network: nn.Module) -> dict[str, int]:
    """``stage1`` ... -> place in timm's ``feature_info``.

    Args:
        network: Of timm's; another has none.
    """
    if not hasattr(network, "forward_intermediates"):
        return {}
    reductions = [int(level["reduction"]) for level in cast(Any, network).feature_info]
    before = sum(reduction < 4 for reduction in reductions)
    return {f"{_STAGE}{at - before + 1}": at for at in range(before, len(reductions))}


def _stage(network: nn.Module, layer: str) -> nn.Module:
    stages = stages_of(network)
    if layer not in stages:
        known = f"{LAST}, {', '.join(stages)}" if stages else f"{LAST} and the names of its modules"
        raise ValueError(f"layer={layer!r} is none of {type(network).__name__}, which has {known}")
    return FeatureGetterNet(network, [stages[layer]])


def _last_node(network: nn.Module, image: Tensor) -> str:
    """The last map on the way to the logits of a network that ``torch.fx`` can trace."""
    found = _run(_cut(network, {node: node for node in _nodes(network)}), image)
    name, last = type(network).__name__, None
    for node, made in found.items():
        if _is_map(made) and min(made.shape[2:]) > 1:
            last = node
        elif isinstance(made, Tensor) and made.dim() == 3 and made.shape[1] > 1:
            raise ValueError(
                f"{name} is a transformer: it makes tokens and no map; timm's own network of that "
                "kind gives them as one, for example vit_base_patch16_224 with layer='stage12'"
            )
    if last is None:
        raise ValueError(f"{name} makes no map of an image")
    return last


def _nodes(network: nn.Module) -> list[str]:
    try:
        with eval_mode(network):
            return cast("list[str]", get_graph_node_names(network)[1])
    except Exception as error:  # whatever its code does with what is no tensor
        raise ValueError(
            f"{type(network).__name__} cannot be cut at one of its modules ({one_line(error)}); "
            f"take layer={LAST!r} of a network of timm's"
        ) from error


def _extractor(network: nn.Module, layer: str) -> nn.Module:
    nodes = _nodes(network)
    if not any(node == layer or node.startswith(f"{layer}.") for node in nodes):
        raise ValueError(
            f"layer={layer!r} is no module of {type(network).__name__}; the nearest is "
            f"{nearest(layer, nodes)!r}; or take {', '.join([LAST, *stages_of(network)])}"
        )
    return _cut(network, {layer: _MAP})


def _cut(network: nn.Module, nodes: Mapping[str, str]) -> nn.Module:
    """A network up to these nodes, its modules shared; torchvision's own would not be copied."""
    with eval_mode(network):
        cut = create_feature_extractor(network, dict(nodes), suppress_diff_warning=True)
    return GraphModule(cut, cut.graph)


def _run(network: nn.Module, image: Tensor) -> Any:
    try:
        with torch.no_grad(), eval_mode(network):
            return network(image)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"the network refuses images of {tuple(image.shape)}: {one_line(error)}; take another "
            "image_size"
        ) from error


def _is_map(made: Any) -> bool:
    return isinstance(made, Tensor) and made.dim() == 4 and made.shape[2] * made.shape[3] > 1


def _check_map(made: Any, network: nn.Module, layer: str, image: Tensor) -> None:
    if _is_map(made):
        return
    name = type(network).__name__
    if isinstance(made, Tensor) and made.dim() == 3:
        stages = list(stages_of(network))
        tokens = f"{made.shape[1]} tokens of {made.shape[2]} channels"
        advice = "take a convolutional network"
        if stages:
            advice = f"its tokens can be read as a map with layer={stages[-1]!r}"
        raise ValueError(
            f"{name} is a transformer: layer={layer!r} gives {tokens}, no map; {advice}"
        )
    what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    raise ValueError(
        f"layer={layer!r} of {name} gives {what} of images of {tuple(image.shape)}; expected a map "
        "(B, C, H, W) of more than one position"
    )


class MapClassifier(nn.Module):
    """A backbone up to one of its maps, a pool, and a linear classifier.

    Args:
        backbone: Gives the map.
        num_classes: Classes; 0 leaves the classifier out.
        pool: Name of the pool, see ``convattn.POOLS``.
        norm: A BatchNorm without factors behind the pool.
        drop_rate: Dropout before the classifier.
        **options: Of the pool.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        backbone: MapBackbone,
        *,
        num_classes: int,
        pool: str,
        norm: bool = True,
        drop_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_features = backbone.num_features
        self._head = {"pool": pool, "norm": norm, "drop": drop_rate, **options}
        self.head = self._make_head()
        self.pretrained_cfg: Any = {
            "architecture": "map_classifier",
            "first_conv": (),
            "classifier": "head.fc",
        }

    def _make_head(self) -> PooledClassifier:
        return PooledClassifier(self.num_features, self.num_classes, **self._head)

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier reads."""
        return self.head.pool.pool.out_features

    def get_classifier(self) -> nn.Module:
        """The classifier, an nn.Identity when there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new pool and classifier, for so many classes."""
        self.num_classes = num_classes
        self.head = self._make_head().train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, h, w)."""
        return cast(Tensor, self.backbone(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, h, w) -> (B, num_classes), or what the classifier would read."""
        return cast(Tensor, self.head(x, pre_logits=pre_logits))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


@register_model
def map_classifier(
    pretrained: bool = False,
    *,
    backbone: str = "resnet18",
    layer: str = LAST,
    image_size: int = 224,
    in_chans: int = 3,
    num_classes: int | None = None,
    pool: str = "attention",
    norm: bool = True,
    drop_rate: float = 0.0,
    **arguments: Any,
) -> MapClassifier:
    """What ``convattn probe`` leaves: a network up to one of its maps, a pool and a classifier.

    ``pool_`` before a name makes it an option of the pool, as in ``pool_num_queries``; all others
    are the backbone's. ``pretrained`` loads the backbone's released weights; of a folder or
    repository that ``convattn push`` has made, the whole network's.
    """
    cfg, *_ = [arguments.pop(word, None) for word in _OF_TIMMS_BUILDER]
    if num_classes is None:
        num_classes = cfg.get("num_classes", 1000) if isinstance(cfg, Mapping) else 1000
    prefix = "pool_"
    options = {k.removeprefix(prefix): v for k, v in arguments.items() if k.startswith(prefix)}
    others = {k: v for k, v in arguments.items() if not k.startswith(prefix)}
    network = create_backbone(
        backbone, pretrained=pretrained and cfg is None, in_chans=in_chans, **others
    )
    image = torch.zeros(1, in_chans, image_size, image_size)
    model = MapClassifier(
        MapBackbone(network, layer, image=image),
        num_classes=num_classes,
        pool=pool,
        norm=norm,
        drop_rate=drop_rate,
        **options,
    )
    if cfg is not None:
        model.pretrained_cfg |= resolve_pretrained_cfg("map_classifier", cfg).to_dict()
        if pretrained:
            load_pretrained(model, num_classes=num_classes, in_chans=in_chans)
    return model
