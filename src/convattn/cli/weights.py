"""``convattn weights``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convattn.cli.targets import num_params_of
from convattn.cli.words import UsageError, choose, parse
from convattn.text import aligned, nearest

_PROG = "convattn weights"

_HELP = """\
usage: convattn weights [--filter TEXT]
       convattn weights NAME
       convattn weights download NAME
       convattn weights convert IN OUT [--to ours|released] [--model NAME]

Released weights: all of them, or one in full. download gets a file before it is needed; convert
writes weights under our names or those of PatchConvNet's authors, as .safetensors or .pth.
"""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Show all released weights."""

    filter: str | None = None
    """Show only names that contain this."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Write a file of weights under other names or in another format; nothing is overwritten."""

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IN")] = None
    """File to read: a run folder, .safetensors, or one of torch.save."""
    target: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """File to write: .safetensors or .pth."""
    to: Literal["ours", "released"] = "ours"
    """Names of the tensors."""
    model: str | None = None
    """Name of the network; None finds out, for a published PatchConvNet."""


def command(arguments: list[str]) -> int:
    """Run ``convattn weights``."""
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help"):
        print(_HELP, end="")
    elif first == "convert":
        _convert(arguments[1:])
    elif first == "download":
        _download(arguments[1:])
    elif first and not first.startswith("-"):
        _show(_only(arguments, _PROG))
    else:
        _list(parse(ListOptions, ListOptions(), arguments, prog=_PROG).filter)
    return 0


def _list(wanted: str | None) -> None:
    cfgs = _cfgs()
    names = [name for name in cfgs if (wanted or "") in name]
    if not names:
        assert wanted is not None
        raise UsageError(
            f"no name of weights contains {wanted!r}; the nearest is {nearest(wanted, cfgs)!r}"
        )
    head = ("name", "pixels", "top-1", "parameters", "here")
    rows = (
        (name, f"{cfgs[name].input_size[1]}", _top1(name), _parameters(name), _size(cfgs[name]))
        for name in names
    )
    print("\n".join(aligned([head, *rows])))


def _show(given: str) -> None:
    from convattn.files import hash_file
    from convattn.weights import RELEASES

    name, cfg = _named(given)
    file, size, release = _file(cfg), cfg.input_size[1], RELEASES.get(name)
    rows = [
        ("network", f"{cfg.architecture}, {_parameters(name)} parameters"),
        ("classes", f"{cfg.num_classes:,}"),
        (
            "images",
            f"short side to {math.floor(size / cfg.crop_pct)} pixels, {cfg.interpolation}, cropped "
            f"to {size} x {size}; mean {cfg.mean}, std {cfg.std}",
        ),
    ]
    if release is not None:
        rows.append(("top-1", f"{release.top1} % on ImageNet, the authors' figure"))
    if release is not None and release.images_per_second is not None:
        rows.append(
            (
                "on a V100",
                f"{release.images_per_second:,} images a second, {release.peak_mb:,} MB, the "
                "authors' figures",
            )
        )
    rows += [("licence", cfg.license), ("paper", cfg.paper_ids), ("address", cfg.url)]
    rows.append(("here", str(file) if file.is_file() else f"no; it belongs at {file}"))
    if hash_file(file).is_file():
        rows.append(("SHA-256", hash_file(file).read_text(errors="replace").split(maxsplit=1)[0]))
    print(name)
    print("\n".join(aligned([row for row in rows if row[1]])))


def _download(words: list[str]) -> None:
    from convattn.weights import fetch

    _, cfg = _named(_only(words, f"{_PROG} download"))
    print(fetch(cfg.url) if cfg.url else _file(cfg))


def _convert(words: list[str]) -> None:
    from convattn.weights import convert_weights

    prog = f"{_PROG} convert"
    options = parse(ConvertOptions, ConvertOptions(), words, prog=prog)
    if options.source is None or options.target is None:
        raise UsageError(f"{prog} takes the file to read and the file to write")
    if options.model is not None:
        import timm

        import convattn  # noqa: F401  (registers the models)

        choose(
            "model", options.model, dict.fromkeys([*timm.list_models(), *timm.list_pretrained()])
        )
    made = convert_weights(
        Path(options.source), Path(options.target), to=options.to, model=options.model
    )
    print(
        f"{options.target}  {made.tensors:,} tensors, {made.parameters / 1e6:.2f} M numbers, of "
        f"{made.model or 'a network that is not known'}"
    )


def _only(words: list[str], prog: str) -> str:
    if len(words) != 1:
        raise UsageError(f"{prog} takes the name of one model's weights; {_PROG} lists them")
    return words[0]


def _named(name: str) -> tuple[str, Any]:
    """The whole name of weights, where the tag may be left out, and what timm knows of them."""
    import timm

    from convattn import OUR_MODELS

    if name in OUR_MODELS:
        tag = timm.models.get_pretrained_cfg(name).tag
        if tag is None:
            raise UsageError(f"no weights of {name} were released; {_PROG} lists all that were")
        name = f"{name}.{tag}"
    return name, choose("weights", name, _cfgs())


def _cfgs() -> dict[str, Any]:
    """Name -> what timm knows of it, of all weights of our networks."""
    import timm

    from convattn import OUR_MODELS

    names = [name for name in timm.list_pretrained() if name.split(".")[0] in OUR_MODELS]
    return {name: timm.models.get_pretrained_cfg(name) for name in names}


def _file(cfg: Any) -> Path:
    from convattn.weights import cached_path

    return cached_path(cfg.url) if cfg.url else Path(cfg.file)


def _size(cfg: Any) -> str:
    file = _file(cfg)
    return f"{file.stat().st_size / 1e6:.1f} MB" if file.is_file() else "no"


def _top1(name: str) -> str:
    from convattn.weights import RELEASES

    return f"{RELEASES[name].top1} %" if name in RELEASES else ""


def _parameters(name: str) -> str:
    return f"{num_params_of(name.split('.')[0]) / 1e6:.2f} M"
