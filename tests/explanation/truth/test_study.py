import json

import pytest
import torch
from safetensors.torch import load_file

from convattn.explanation.linear_evidence import evidence_maps
from convattn.explanation.truth import MEASURES, Protocol, TruthReport, run_study
from convattn.explanation.truth.intervals import Interval
from convattn.explanation.truth.methods import possible_methods
from convattn.modes import frozen_eval_mode

from .stripes import make_network, make_stripes, train

PROTOCOL = Protocol(num_steps=6, percentiles=(20, 60), num_samples=1, num_stages=2, num_dear=24)


@pytest.fixture(scope="module")
def model():
    return train()


@pytest.fixture(scope="module")
def data():
    return make_stripes(60, seed=7)


def batches_of(images, labels, size=20):
    return list(zip(images.split(size), labels.split(size), strict=True))


def study_of(model, data, folder, **options):
    images, labels, masks = data
    options = {"masks": masks, "methods": ["evidence"], "protocol": PROTOCOL, **options}
    return run_study(model, batches_of(images, labels), folder, device="cpu", **options)


@pytest.fixture(scope="module")
def other():
    return train(seed=1)


@pytest.fixture(scope="module")
def study(model, other, data, tmp_path_factory):
    random = make_network(seed=2).eval()

    def shifted(network, images, targets):
        maps, grid = evidence_maps(network, images, targets)
        return maps.roll((6, 6), (1, 2)), grid

    def of_another_class(network, images, targets):
        return evidence_maps(network, images, (targets + 1) % 3)

    def of_random_weights(network, images, targets):
        with frozen_eval_mode(random):
            return evidence_maps(random, images, targets)

    looks = {
        "shifted": shifted,
        "of_another_class": of_another_class,
        "of_random_weights": of_random_weights,
    }
    folder = tmp_path_factory.mktemp("study")
    return study_of(model, data, folder, looks=looks, others=[other], methods=NAMES)


NAMES = ["evidence", "attention", "gradcam", "layercam", "integrated_gradients", "occlusion"]


@pytest.fixture(scope="module")
def report(study):
    return TruthReport.of(study, PROTOCOL)


def test_evidence_of_a_trained_network_is_believed(report):
    verdict = report.verdicts["evidence"]
    assert verdict.word == "believe", verdict.reasons
    assert any("sums to its logit" in reason for reason in verdict.reasons)
    assert report.cells["evidence"]["pointing"].value > 0.9
    assert report.cells["evidence"]["sum_error"].high < 1e-5


@pytest.mark.parametrize("name", ["shifted", "of_another_class", "of_random_weights"])
def test_a_wrong_map_is_not_believed(name, report):
    assert report.verdicts[name].word == "do not believe", report.verdicts[name].reasons


def test_a_map_of_other_weights_stays_when_the_networks_are_random(report):
    assert report.cells["of_random_weights"]["randomised"].value == pytest.approx(1)
    reasons = " ".join(report.verdicts["of_random_weights"].reasons)
    assert "stays much the same when the network's weights are random" in reasons


def test_what_the_network_knows_is_beyond_the_commonest_class(study, model, data):
    images, labels, _ = data
    with torch.inference_mode(), frozen_eval_mode(model):
        right = model(images).argmax(1) == labels
    commonest = max(range(3), key=lambda one: (int((labels == one).sum()), -one))
    expected = right.double() - (labels == commonest).double()
    assert torch.equal(study.knows, expected)


def test_maps_of_a_network_that_knows_nothing_are_doubted_at_best(data, tmp_path):
    found = study_of(make_network(seed=5).eval(), data, tmp_path)
    report = TruthReport.of(found, PROTOCOL)
    verdict = report.verdicts["evidence"]
    assert verdict.word != "believe"
    assert any("its maps explain a guess" in reason for reason in verdict.reasons)


def test_yardsticks_are_never_believed(report):
    assert {report.verdicts[name].word for name in ("random", "centre")} == {"do not believe"}


def test_every_method_that_the_network_has_is_measured(study, report):
    assert set(study.left_out) == {"attention"}
    assert "no layer of attention" in study.left_out["attention"]
    cells = report.cells["gradcam"]
    assert cells["sum_error"] == "gradcam claims no sum"
    assert all(isinstance(cell, Interval) for name, cell in cells.items() if name != "sum_error")
    assert report.cells["random"]["randomised"] == "random asks no network"
    assert all(set(cells) == set(MEASURES) for cells in report.cells.values())
    assert cells["road"].num_images == 24
    assert cells["energy"].num_images == 60


def test_the_table_is_as_announced(report):
    lines = report.csv().splitlines()
    assert lines[0] == "method,measure,value,low,high,num_images"
    rows = {tuple(line.split(",")[:2]): line.split(",")[2:] for line in lines[1:]}
    value, low, high, count = rows["evidence", "energy"]
    assert float(low) < float(value) < float(high)
    assert count == "60"
    assert rows["occlusion", "sum_error"] == ["n/a: occlusion claims no sum", "", "", "0"]
    found = json.loads(report.to_json({"run": "x"}))
    assert found["methods"]["evidence"]["verdict"] == "believe"
    assert found["protocol"]["class"].startswith("pointing")
    assert "believe" in report.table()
    page = report.markdown("title", "truth.png")
    assert "attention is left out" in page
    assert "## evidence: believe" in page


def test_without_objects_their_measures_have_a_reason(model, data, tmp_path):
    found = study_of(model, data, tmp_path, masks=None)
    report = TruthReport.of(found, PROTOCOL)
    for name in ("pointing", "energy", "max_box_acc", "iou"):
        assert "tiny_imagenet bring boxes" in report.cells["evidence"][name]
    assert "one network" in report.cells["evidence"]["agreement"]
    assert report.verdicts["evidence"].word == "believe"
    assert "pointing is left out: no boxes" in report.table()


def data_without_an_object_have_no_answer(model, data, tmp_path):
    images, labels, masks = data
    some = masks.clone()
    some[30:] = False
    few = masks.clone()
    few[10:] = False
    cells = []
    for number, part in enumerate((some, few)):
        (folder := tmp_path / str(number)).mkdir()
        found = study_of(model, (images, labels, part), folder)
        cells.append(TruthReport.of(found, PROTOCOL).cells["evidence"])
    assert cells[0]["energy"].num_images == 30
    assert cells[1]["energy"] == "10 images have an answer, and an interval needs 20"


def test_too_few_images_are_refused(model, data, tmp_path):
    found = study_of(model, tuple(part[:19] for part in data), tmp_path)
    with pytest.raises(ValueError, match="there are 19 images, and an interval needs at least 20"):
        TruthReport.of(found, PROTOCOL)


class Stopped(Exception):
    pass


@pytest.mark.long
def test_a_study_that_was_stopped_goes_on_to_the_same_numbers(model, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    names = ["evidence", "integrated_gradients"]
    found = study_of(model, data, whole, methods=names)

    def stop(count):
        raise Stopped

    for done in (1, 2):
        with pytest.raises(Stopped):
            study_of(model, data, parts, methods=names, progress=_after(done, stop))
        assert len(list(parts.iterdir())) == done
    again = study_of(model, data, parts, methods=names)
    csv = TruthReport.of(found, PROTOCOL).csv()
    assert TruthReport.of(again, PROTOCOL).csv() == csv
    for file in whole.iterdir():
        kept = load_file(parts / file.name)
        assert all(torch.equal(v, kept[k]) for k, v in load_file(file).items())


def _after(number, act):
    """Does something when it is called for the last of some times."""
    calls = []

    def count(images):
        calls.append(images)
        if len(calls) == number:
            act(images)

    return count


def test_the_network_is_left_as_it_was(model, data, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model[0].weight.requires_grad_(False)
    study_of(model, data, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    model[0].weight.requires_grad_(True)


def test_unknown_methods_are_refused(model, data, tmp_path):
    with pytest.raises(ValueError, match="methods holds 'lime'; known are evidence"):
        study_of(model, data, tmp_path, methods=["lime"])
    with frozen_eval_mode(model), pytest.raises(ValueError, match="has no layer of attention"):
        possible_methods(model, data[0], ["attention"])
