"""Does augment() work on real networks? Tries it on a hundred and writes the table that docs keep.

    python benchmarks/augment_matrix.py --out docs/results/augment_matrix.md [--only NAME ...]

For each network, once with ``pool="attention"`` and once with ``conv="last-3-stages"``, untrained
weights, seed 0:

1. ``plan`` says whether it can be done, at the network's own image size;
2. the logits of the augmented network equal the plain one's, 1e-5 relative to the largest;
3. three steps of SGD on two images of 128 pixels, or of the network's own size where it takes no
   other: every loss is finite, and every new parameter
   has had a gradient other than zero (but a key's bias, which a softmax cannot feel);
4. a second augmented network takes its state dict and gives the same logits.

Where the pool is a function call it is tried again as the error says, with ``pool_name``. Every
finished network is one line of JSON beside the table, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import convattn
import pages
from convattn.surgery import new_parameters
from convattn.text import markdown_table

TIMM = """
resnet18 resnet26d resnet50 seresnet50 resnext50_32x4d res2net50_26w_4s resnest14d skresnet18
ecaresnet26t resnetrs50 wide_resnet50_2 legacy_seresnet18 bat_resnext26ts botnet26t_256
lambda_resnet26t resnet32ts resnetv2_50 resnetv2_50d_gn nf_resnet50 nf_regnet_b0 eca_nfnet_l0
dm_nfnet_f0 regnetx_004 regnety_004 regnetz_b16 gernet_s tresnet_m convnext_atto convnextv2_atto
inception_next_atto efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 efficientnet_lite0
mixnet_s tf_mixnet_s mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100
mobilenetv4_conv_small mnasnet_100 semnasnet_075 fbnetc_100 spnasnet_100 hardcorenas_a tinynet_e
lcnet_050 rexnet_100 ghostnet_100 ghostnetv2_100 repghostnet_050 mobileone_s0 repvgg_a0 repvit_m0_9
fastvit_t8 starnet_s1 fasternet_t0 efficientvit_b0 edgenext_xx_small visformer_tiny poolformer_s12
mambaout_femto rdnet_tiny densenet121 densenetblur121d vgg11_bn dla34 dla60 hrnet_w18_small
inception_v3 inception_v4 inception_resnet_v2 legacy_xception xception41 cspresnet50 cspdarknet53
darknet53 ese_vovnet19b_dw selecsls42b hgnet_tiny hgnetv2_b0 dpn48b dpn68
"""
TORCHVISION = """
alexnet vgg11 squeezenet1_0 squeezenet1_1 googlenet inception_v3 resnet18 resnet50 wide_resnet50_2
resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5
shufflenet_v2_x0_5 efficientnet_b0 efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny
"""
Result = dict[str, Any]
"""What was found of one way of one network."""

KINDS = {"pool": {"pool": "attention"}, "conv": {"conv": "last-3-stages"}}
TOLERANCE = 1e-5


def create(library: str, name: str) -> tuple[nn.Module, int]:
    """An untrained network and the side of its images."""
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(name)
        return model, model.pretrained_cfg["input_size"][-1]
    # Without drawing truncated normals, which takes these two a minute.
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "inception_v3":
        arguments["aux_logits"] = False  # the auxiliary head takes images of 299 pixels only
    return getattr(torchvision.models, name)(**arguments), 299 if name == "inception_v3" else 224


def logits_of(out: Any) -> torch.Tensor:
    """The logits of a network that may return those of its auxiliary heads too."""
    return out if isinstance(out, torch.Tensor) else out.logits


def attempt(make: Callable[[], tuple[nn.Module, int]], options: dict[str, Any]) -> Result:
    """What augmenting one network in one way came to."""
    plain, side = make()
    plain.eval()
    found = convattn.plan(plain, side, **{"pool": None, "conv": None, **options})
    reasons = (
        [found.pool.reason] if "pool" in options else [c.reason for c in found.convs if c.asked]
    )
    try:
        model = convattn.augment(plain, input_size=side, **options)
    except ValueError as error:
        said = any(reason in str(error) for reason in reasons if reason)
        return {"passed": False, "why": str(error), "plan_said_so": said}
    result: Result = {
        "replaced": len(found.replaced),
        "params": found.params,
        "params_after": found.params_after,
        "macs": found.macs,
        "macs_after": found.macs_after,
    }
    if sum(p.numel() for p in model.parameters()) != found.params_after:
        return {**result, "passed": False, "why": "plan's parameters are not the network's"}
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = plain(images), model(images)
    result["difference"] = float((after - before).abs().max() / before.abs().max())
    if not result["difference"] <= TOLERANCE:
        return {**result, "passed": False, "why": f"logits differ by {result['difference']:.1e}"}
    why = train(model.train(), 128 if takes(plain, 128) else side)
    if why is not None:
        return {**result, "passed": False, "why": why}
    again = convattn.augment(make()[0].eval(), input_size=side, **options)
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        same = torch.equal(again.eval()(images), model.eval()(images))
    if not same:
        return {**result, "passed": False, "why": "a reloaded network gives other logits"}
    return {**result, "passed": True}


def takes(plain: nn.Module, side: int) -> bool:
    """Whether a network runs on images of this size."""
    try:
        with torch.inference_mode():
            plain(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError):
        return False
    return True


def train(model: nn.Module, side: int) -> str | None:
    """Three steps; what went wrong."""
    torch.manual_seed(2)
    images, labels = torch.randn(2, 3, side, side), torch.tensor([1, 2])
    optimizer = torch.optim.SGD(convattn.param_groups(model, lr=1e-3), momentum=0.9)
    silent = {name for name in new_parameters(model) if not name.endswith("attn.k.bias")}
    for _ in range(3):
        loss = F.cross_entropy(logits_of(model(images)), labels)
        if not torch.isfinite(loss):
            return f"the loss is {loss.item()}"
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in silent and parameter.grad is not None and parameter.grad.any():
                silent.remove(name)
        optimizer.step()
    return f"no gradient reaches {sorted(silent)[0]}" if silent else None


def measure(library: str, name: str) -> dict[str, Any]:
    """Both ways of one network."""
    row: dict[str, Any] = {"library": library, "name": name}
    started = time.monotonic()
    for kind, options in KINDS.items():
        try:
            row[kind] = attempt(lambda: create(library, name), options)
            why = row[kind].get("why", "")
            if "give pool_name='" in why:
                pool_name = why.split("give pool_name='")[1].split("'")[0]
                again = attempt(lambda: create(library, name), {**options, "pool_name": pool_name})
                row[kind]["named"] = {**again, "pool_name": pool_name}
        except Exception as error:  # a network that breaks must not end the survey
            row[kind] = {"passed": False, "why": f"{type(error).__name__}: {error}", "crash": True}
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def cell(result: Result) -> str:
    """One way of one network, as the table shows it."""
    named = result.get("named", {})
    best = result if result["passed"] else named
    if best.get("passed"):
        grown = f"{best['params'] / 1e6:.1f} → {best['params_after'] / 1e6:.1f} M"
        how = "" if result["passed"] else f' with `pool_name="{named["pool_name"]}"`'
        return f"yes{how}, {best['replaced']} replaced, {grown}, {best['difference']:.0e}"
    return "**no**"


def table(rows: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Which networks augment() works on",
        "",
        "Untrained weights. What is tried is in the script's first lines: equal logits, three "
        "training steps with a gradient in every new parameter, a state dict's round trip.",
        "",
    ]
    for library in ("timm", "torchvision"):
        mine = [row for row in rows if row["library"] == library]
        if not mine:
            continue
        alone = sum(row["pool"]["passed"] and row["conv"]["passed"] for row in mine)
        named = sum(passes(row["pool"]) and passes(row["conv"]) for row in mine)
        lines.append(
            f"- {library}: {alone} of {len(mine)} networks pass both ({alone / len(mine):.0%}), "
            f"{named} ({named / len(mine):.0%}) with the pool named as the error asks"
        )
    total = sum(row["pool"]["passed"] and row["conv"]["passed"] for row in rows)
    worst = max(
        best["difference"]
        for row in rows
        for kind in KINDS
        if (best := row[kind].get("named", row[kind])).get("difference") is not None
    )
    said = [
        row[kind]["plan_said_so"] for row in rows for kind in KINDS if "plan_said_so" in row[kind]
    ]
    lines += [
        f"- together: {total} of {len(rows)} ({total / len(rows):.0%}) pass both without help",
        f"- largest difference of logits, relative to the largest logit: {worst:.1e}",
        f"- refusals whose reason `plan` gave beforehand: {sum(said)} of {len(said)}",
        "",
        "Columns: replaced modules, parameters before and after, difference of logits.",
        "",
        markdown_table(
            ("library", "network", '`pool="attention"`', '`conv="last-3-stages"`'),
            [
                (row["library"], f"`{row['name']}`", cell(row["pool"]), cell(row["conv"]))
                for row in rows
            ],
        ),
    ]
    failures = [
        f"- {row['library']} `{row['name']}`, {kind}: {row[kind]['why']}"
        for row in rows
        for kind in KINDS
        if not row[kind]["passed"]
    ]
    if failures:
        lines += ["", "## What was refused, in the words of the error", "", *failures]
    return "\n".join(lines) + "\n"


def passes(result: Result) -> bool:
    """Whether one way works, with the pool's name if need be."""
    return result["passed"] or result.get("named", {}).get("passed", False)


def main() -> None:
    """Try every network that has no line yet, then write the table."""
    pages.answer_check("augment_matrix")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/augment_matrix.md"))
    parser.add_argument("--log", type=Path, default=Path("runs/augment_matrix.jsonl"))
    parser.add_argument("--only", nargs="*", default=None, help="names of networks")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    if arguments.log.exists():
        for line in arguments.log.read_text().splitlines():
            row = json.loads(line)
            rows[row["library"], row["name"]] = row
    wanted = [("timm", name) for name in TIMM.split()]
    wanted += [("torchvision", name) for name in TORCHVISION.split()]
    wanted = [pair for pair in wanted if arguments.only is None or pair[1] in arguments.only]
    for number, pair in enumerate(wanted, 1):
        if pair not in rows:
            rows[pair] = measure(*pair)
            with arguments.log.open("a") as log:
                log.write(json.dumps(rows[pair]) + "\n")
            gc.collect()
        row = rows[pair]
        words = [f"{kind} {cell(row[kind])}" for kind in KINDS]
        print(f"{number}/{len(wanted)}  {' '.join(pair)}  {'; '.join(words)}", flush=True)
        for kind in KINDS:
            if not row[kind]["passed"]:
                print(f"    {kind}: {row[kind]['why']}", flush=True)
    about = pages.provenance("python benchmarks/augment_matrix.py")
    about["machine"] += f", timm {timm.__version__}, torchvision {torchvision.__version__}"
    pages.publish(arguments.out, table([rows[pair] for pair in wanted]), [about])
    print(arguments.out)


if __name__ == "__main__":
    main()
