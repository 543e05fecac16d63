import io
import itertools
import json
import os
import pickle
import struct
import zipfile

import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.campaign.running import Case, run_cases
from tests.nasty import NASTY

pytestmark = pytest.mark.timeout(3600)
_EXPECTED = {"cases", "outcomes", "stdout", "stderr"}
_MADE = {"run", "weights.pth", "images", "data", "out", "out.safetensors", "stdout", "stderr"}


class _Call:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _payloads(trace):
    """Objects that leave the file ``trace`` when they are unpickled."""
    write = f"open({str(trace)!r}, 'w').close()"
    return {
        "os.system": _Call(os.system, f"touch {trace}"),
        "exec": _Call(exec, write),
        "eval": _Call(eval, write),
        "open": _Call(open, str(trace), "w"),
        "os.mkdir": _Call(os.mkdir, str(trace)),
        "os.symlink": _Call(os.symlink, "/", str(trace)),
        "torch.save": _Call(torch.save, {}, str(trace)),
        "nested": {"state_dict": {"a": torch.ones(2), "b": [_Call(exec, write)]}},
    }


def _zipped(value):
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def _legacy(value):
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def _pickles(trace, runs):
    """Pickles with calls in them, wherever the program takes weights."""

    def weights(content, *command):
        def words(folder):
            (folder / "weights.pth").write_bytes(content)
            return [*command]

        return words

    def resumed(content):
        def words(folder):
            file = runs.copy(runs.stopped, folder) / "checkpoints" / "last.ckpt"
            file.write_bytes(content)
            return ["train", "--resume", "run"]

        return words

    explain = ("explain", "test_resnet", runs.image, "--out", "out", "--weights", "weights.pth")
    convert = ("weights", "convert", "weights.pth", "out.safetensors")
    forms = {"zip": _zipped, "legacy": _legacy, "bare": pickle.dumps}
    for (name, value), (form, write) in itertools.product(_payloads(trace).items(), forms.items()):
        content = write(value)
        yield f"{form} pickle of {name}, explain", weights(content, *explain)
        yield f"{form} pickle of {name}, resume", resumed(content)
        if form == "zip":
            yield f"{form} pickle of {name}, convert", weights(content, *convert)


def _archives(trace, runs):
    """Checkpoints whose zip names files elsewhere, or is another thing than it says."""
    escaping = io.BytesIO(_zipped({"a": torch.ones(2)}))
    with zipfile.ZipFile(escaping, "a") as archive:
        for name in ("../../trace", str(trace), "archive/../../../trace"):
            archive.writestr(name, "x")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))
    for name, content in (("escaping zip", escaping), ("zip bomb", bomb)):

        def words(folder, content=content):
            (folder / "weights.pth").write_bytes(content.getvalue())
            return [
                "explain",
                "test_resnet",
                runs.image,
                "--out",
                "out",
                "--weights",
                "weights.pth",
            ]

        yield name, words


def _configs(trace, runs):
    """Configurations that name code, files and places elsewhere."""
    payload = _zipped(_payloads(trace)["exec"])
    code = f"__import__('os').system('touch {trace}')"
    models = (
        code,
        f"hf-hub:{code}",
        "local-dir:/tmp",
        "../../etc/passwd",
        "os.system",
        "torchvision/os",
    )
    arguments = (
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": {"file": "weights.pth"}, "pretrained": True},
        {"pretrained_cfg_overlay": {"file": "weights.pth"}, "pretrained": True},
        {"pretrained_cfg": {"url": "file:///etc/passwd"}, "pretrained": True},
        {"norm_layer": code},
        {"act_layer": code},
        {"cache_dir": str(trace)},
        {"embed_dim": code},
    )
    changes = [{"name": name} for name in models]
    changes += [{"model_args": one} for one in arguments]
    changes += [{"backbone": code}, {"checkpoint": "weights.pth"}]
    for change, command in itertools.product(changes, ("predict", "evaluate")):

        def words(folder, change=change, command=command):
            (folder / "weights.pth").write_bytes(payload)
            file = runs.copy(runs.finished, folder) / "config.json"
            config = json.loads(file.read_text())
            config["model"].update(change)
            file.write_text(json.dumps(config))
            more = [runs.image, "--out", "out"] if command == "predict" else ["--out", "out"]
            return [command, "run", *more]

        yield f"config {change}, {command}", words


def _headers(trace, runs):
    """safetensors whose header promises what there is not."""

    def file(header, data=b"", size=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if size is None else size) + text + data

    def one(**changes):
        return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}

    contents = (
        *(file({}, size=size) for size in (2**63, 2**64 - 1, 10**12)),
        file(one(data_offsets=[0, 2**62])),
        file(one(data_offsets=[8, 0]), bytes(8)),
        file(one(data_offsets=[-8, 0]), bytes(8)),
        file(one(shape=[2**40, 2**40]), bytes(8)),
        file(one(shape=[-1]), bytes(8)),
        file(one(dtype="OBJ"), bytes(8)),
        file(one(dtype=_zipped({}).hex()), bytes(8)),
        file(b"[" * 100_000),
        file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        file({"__metadata__": {"pretrained_cfg": "[" * 100_000}, **one()}, bytes(8)),
        file({"../../trace": one()["a"], str(trace): one()["a"]}, bytes(8)),
    )
    for number, content in enumerate(contents):

        def words(folder, content=content):
            (runs.copy(runs.finished, folder) / "model.safetensors").write_bytes(content)
            return ["predict", "run", runs.image, "--out", "out"]

        yield f"safetensors header {number}", words


def _names(trace, runs):
    """Names of classes and files that would be paths, commands or markup."""
    escaping = ("../../trace", str(trace), "..", "a/../../../trace", "%2e%2e%2ftrace", "~/trace")
    classes = (*escaping, f"$(touch {trace})", f"`touch {trace}`", *NASTY[:6])
    for name in classes:

        def words(folder, name=name):
            file = runs.copy(runs.finished, folder) / "model.safetensors"
            with safetensors.safe_open(file, "pt") as opened:
                about = json.loads(opened.metadata()["pretrained_cfg"])
            about["label_names"] = [f"{name}{number}" for number in range(10)]
            tensors = safetensors.torch.load_file(file)
            safetensors.torch.save_file(tensors, file, {"pretrained_cfg": json.dumps(about)})
            return ["explain", "run", runs.image, "--top-k", "3", "--out", "out"]

        yield f"class {name!r}", words
    files = (
        f"$(touch {trace.name}).png",
        "-out.png",
        "--help.png",
        *(f"{n}.png" for n in NASTY[:9]),
    )
    for name in files:

        def words(folder, name=name):
            runs.copy(runs.finished, folder)
            (folder / "images").mkdir()
            with open(folder / "images" / name.replace("/", ":"), "wb") as file:
                Image.new("RGB", (20, 20)).save(file, "PNG")
            return ["predict", "run", "images", "--out", "out"]

        yield f"file {name!r}", words


def _annotations(trace, runs):
    """Annotations with code, entities and paths elsewhere."""
    code = f"!!python/object/apply:os.system ['touch {trace}']"
    laughs = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    texts = {
        "data.yaml": (
            f"train: images\nval: images\nnames: {code}\n",
            f"{code}\n",
            "a: &a [x, x]\nb: &b [*a, *a]\n"
            + "".join(
                f"c{n}: &c{n} [{', '.join([f'*c{n - 1}' if n else '*b'] * 9)}]\n" for n in range(9)
            ),
        ),
        "Annotations/a.xml": (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;'
            "</filename></annotation>",
            f'<!DOCTYPE a [<!ENTITY e0 "x">{laughs}]><annotation><filename>&e9;</filename>'
            "</annotation>",
        ),
        "metadata.csv": ("file_name,label\n../../../etc/passwd,a\n/etc/passwd,b\n",),
        "metadata.jsonl": (
            '{"file_name": "/dev/zero", "label": "a"}\n{"file_name": "/dev/stdin", "label": "b"}\n',
        ),
        "a.json": (
            '{"shapes": [], "imagePath": "/etc/passwd", "imageHeight": 8, "imageWidth": 8}',
            '{"shapes": [], "imagePath": "/dev/zero", "imageHeight": 8, "imageWidth": 8}',
        ),
    }
    for name, contents in texts.items():
        for number, content in enumerate(contents):

            def words(folder, name=name, content=content):
                file = folder / "data" / name
                file.parent.mkdir(parents=True)
                file.write_text(content)
                return ["check-data", "data"]

            yield f"{name} {number}", words


@pytest.mark.campaign("malicious files", 139)
def test_malicious_files(row, runs, tmp_path):
    """Pickles with calls in them as .pth, checkpoint and bare file, zips that name places elsewhere
    or unpack to gigabytes, configurations with code and others' files, safetensors headers that
    promise too much, classes and files named as paths, commands and markup, annotations with code
    and entities. Nothing may run, and nothing be written but where the command is told to."""
    trace = tmp_path / "trace"
    makers = (_pickles, _archives, _headers, _names, _annotations, _configs)
    everything = [case for make in makers for case in make(trace, runs)]
    place = tmp_path / "cases"

    def case(name, words):
        def judge(ended):
            elsewhere = [one.name for one in place.iterdir() if not one.name.isdigit()]
            strange = {*elsewhere, *os.listdir(tmp_path)} - _EXPECTED
            if strange:
                return f"it ran, or wrote elsewhere: {sorted(strange)}"
            new = {one.name for one in ended.folder.iterdir()} - _MADE
            return f"it wrote {sorted(new)}" if new else ended.outcome

        return Case(name, words, judge)

    run_cases([case(*one) for one in everything], row, place)
    row.check()
