import json
import shutil

import pytest
from PIL import Image

from tests.campaign.counting import REFUSED, RIGHT
from tests.campaign.running import call, start_command, wait, wait_for
from tests.campaign.runs import TRAIN, digest, without_figures

pytestmark = pytest.mark.timeout(3600)


def _together(*commands, folder, apart=None):
    """How commands end that run at once; ``apart`` is waited for after the first has begun."""
    children = []
    for number, words in enumerate(commands):
        place = folder / f"words{number}"
        child = start_command(words, place, before=without_figures)
        children.append((child, place))
        if apart is not None and number == 0:
            assert wait_for(apart, child)
    return [wait(*one) for one in children]


def _verdict(ended, *, right, fits):
    """``RIGHT`` if so many succeeded, the others were refused, and what is left fits."""
    outcomes = [one.outcome for one in ended]
    for outcome in outcomes:
        if outcome not in (RIGHT, REFUSED):
            return outcome
    if outcomes.count(RIGHT) not in right:
        said = [one.errors.strip()[-300:] for one in ended if one.outcome == REFUSED]
        return f"{outcomes.count(RIGHT)} of {len(outcomes)} succeeded: {said}"
    return RIGHT if fits else "what is left is not what one alone leaves"


@pytest.fixture
def images(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                more = 5 * number + (split == "val")
                image = Image.new("RGB", (32, 32), tuple(c + more for c in colour))
                image.save(tmp_path / "images" / split / label / f"{number}.png")
    return tmp_path / "images"


def _probe(images, folder, out):
    model = ["--model", "test_efficientnet", "--random", "--image-size", "64", "--epochs", "1"]
    pools = ["--pools", "avg", "attention", "--seeds", "1", "--cache", folder / "maps"]
    return ["probe", images, *model, *pools, "--out", folder / out]


@pytest.mark.campaign("concurrency", 25)
def test_two_at_once(row, runs, images, tmp_path):
    """Two owners of one folder: `train --resume` of what is still training, two resumes at once,
    three tests into one run, a test of a run that is resumed, two exports to one file, two probes
    into one folder or over one cache. Who comes second is refused in a sentence or waits, and
    what is left is what one alone leaves."""
    expected = digest(runs.finished)
    evaluate = ["evaluate", runs.finished, "--device", "cpu", "--out", tmp_path / "alone"]
    assert call(evaluate, tmp_path / "words", before=without_figures).status == 0
    alone = (tmp_path / "alone" / "predictions.csv").read_text()
    for number in range(5):
        folder = tmp_path / f"case{number}"
        live = folder / "live"
        ended = _together(
            [*TRAIN, live],
            ["train", "--resume", live],
            folder=folder,
            apart=(live / "checkpoints" / "last.ckpt").exists,
        )
        fits = ended[0].outcome == RIGHT and digest(live) == expected
        row.add(f"resume of a live run {number}", _verdict(ended, right=(1,), fits=fits))

        run = runs.copy(runs.stopped, folder / "two")
        ended = _together(*[["train", "--resume", run]] * 2, folder=folder)
        fits = digest(run) == expected
        row.add(f"two resumes {number}", _verdict(ended, right=(1,), fits=fits))

        run = runs.copy(runs.finished, folder / "tests")
        words = ["evaluate", run, "--device", "cpu"]
        ended = _together(*[words] * 3, folder=folder)
        fits = (run / "predictions.csv").read_text() == alone
        row.add(f"three tests {number}", _verdict(ended, right=(1, 2, 3), fits=fits))

        file = folder / "network.safetensors"
        words = ["export", runs.finished, "--format", "safetensors", "--out", file]
        ended = _together(words, words, folder=folder)
        row.add(f"two exports {number}", _verdict(ended, right=(1,), fits=file.is_file()))
    for number in range(2):
        folder = tmp_path / f"probe{number}"
        ended = _together(*[_probe(images, folder, "out")] * 2, folder=folder)
        fits = (folder / "out" / "probe.csv").is_file()
        row.add(f"two probes into one folder {number}", _verdict(ended, right=(1,), fits=fits))
        shutil.rmtree(folder)
        ended = _together(*(_probe(images, folder, out) for out in "ab"), folder=folder)
        found = [_heads(folder / out) for out in "ab" if (folder / out / "probe.csv").exists()]
        fits = bool(found) and found[0] == found[-1]
        row.add(f"two probes over one cache {number}", _verdict(ended, right=(1, 2), fits=fits))
    run = runs.copy(runs.stopped, tmp_path / "resumed")
    ended = _together(["train", "--resume", run], ["evaluate", run], folder=tmp_path / "both")
    fits = digest(run) == expected and json.loads((run / "evaluation.json").read_text())
    row.add("test of a run that is resumed", _verdict(ended, right=(1, 2), fits=bool(fits)))
    row.check()


def _heads(folder):
    """Pools and accuracies."""
    return [line.split(",")[:4] for line in (folder / "probe.csv").read_text().splitlines()]
