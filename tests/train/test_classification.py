import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

from convattn.classification.prediction import classify
from convattn.classification.testing import run_test
from convattn.config import DataConfig, EvaluateConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.data import batch_mix, transform_of
from convattn.explanation import explain
from convattn.runs import Run
from convattn.surgery import new_parameters
from convattn.tasks import resume, train
from convattn.train.classification import (
    BalancedAccuracy,
    ClassificationJob,
    ClassificationTask,
    MultiLabelScores,
    balanced_chances,
    balanced_weights,
    classification_curves,
    dense_targets,
    image_losses,
    training_loss,
)
from convattn.train.datamodule import EpochBatches
from tests.train.conftest import digest, tiny


def test_task_reloads_from_a_checkpoint_alone(finished):
    file = finished.folder / "checkpoints" / "last.ckpt"
    task = ClassificationTask.load_from_checkpoint(file, weights_only=True)
    saved = load_file(finished.folder / "model.safetensors")
    assert task.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(task.model.state_dict()[name], saved[name]) for name in saved)


@pytest.mark.parametrize("pool", ["attention", "class-attention"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_frozen_network_learns_with_its_attention_and_its_classifier(name, pool):
    augment = {"pool": pool, "input_size": 64}
    task = ClassificationTask(name, num_classes=10, augment=augment, freeze=True)
    new = new_parameters(task.model)
    learning = {n for n, p in task.model.named_parameters() if p.requires_grad}
    classifier = {id(p) for p in task.model.get_classifier().parameters()}
    assert new < learning
    assert {id(task.model.get_parameter(n)) for n in learning - new} <= classifier
    assert {id(task.model.get_parameter(n)) for n in learning} >= classifier


def test_hyperparameters_are_plain_and_forget_the_checkpoint(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(ClassificationTask("test_resnet", num_classes=10).model.state_dict(), file)
    augment = {"pool": "attention", "conv": ["layer1.*"], "input_size": (3, 64, 64)}
    task = ClassificationTask("test_resnet", num_classes=10, augment=augment, checkpoint=file)
    assert "checkpoint" not in task.hparams
    again = ClassificationTask(**json.loads(json.dumps(dict(task.hparams))))
    again.load_state_dict(task.state_dict())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = training_loss("cross_entropy", label_smoothing=smoothing, mixes=False)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_mixed_targets_are_not_smoothed_twice():
    logits, targets = torch.randn(5, 4), torch.rand(5, 4).softmax(1)
    loss = training_loss("cross_entropy", label_smoothing=0.1, mixes=True)
    torch.testing.assert_close(loss(logits, targets), F.cross_entropy(logits, targets))


def test_bce_asks_every_class():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = training_loss("bce", label_smoothing=0.0, mixes=False)
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float())
    torch.testing.assert_close(loss(logits, labels), expected)


# --- several classes an image, and weights


def weighted_loss(name, logits, targets, weights):
    return (weights * image_losses(name, logits, targets)).mean()


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weight_2_is_the_image_twice(name, smoothing):
    logits, labels = torch.randn(4, 3).double(), torch.tensor([0, 2, 1, 1])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0]).double()
    targets = dense_targets(labels, 3, smoothing)
    found = weighted_loss(name, logits, targets.double(), weights / weights.mean())
    twice = torch.tensor([0, 1, 1, 2])
    expected = training_loss(name, label_smoothing=smoothing, mixes=False)(
        logits[twice], labels[twice]
    )
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_of_a_mixture_is_the_mixture_of_the_losses(name, weighted):
    images, targets = torch.rand(6, 3, 8, 8), torch.randint(2, (6, 4)).float()
    targets[:, 0] = 1
    weights = torch.tensor([1.0, 0, 3, 2, 0.5, 0]) if weighted else None
    mix = batch_mix(mixup=0.7, num_classes=4)
    mixed, soft, counts = mix.mix_weighted(images.clone(), targets, weights)
    # What the mixture holds of each image is found in its pixels.
    pairs = images.flatten(1), images.flip(0).flatten(1)
    share = ((mixed.flatten(1) - pairs[1]) / (pairs[0] - pairs[1])).nanmedian()
    own = torch.ones(6) if weights is None else weights
    logits, ones = torch.randn(6, 4), torch.ones(6)
    expected = share * weighted_loss(name, logits, targets, own)
    expected += (1 - share) * weighted_loss(name, logits, targets.flip(0), own.flip(0))
    found = weighted_loss(name, logits, soft, ones if counts is None else counts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (mix.num_classes, mix.label_smoothing) == (4, 0.0)


def test_scores_of_all_batches_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 5, generator=generator)
    labels = (torch.rand(50, 5, generator=generator) < 0.3).float()
    metric = MultiLabelScores(5)
    for start in range(0, 50, 20):
        metric.update(logits[start : start + 20], labels[start : start + 20])
    found = metric.compute()
    truth = labels.numpy()
    precision = average_precision_score(truth, logits.numpy(), average="macro")
    assert found["val_map"] == pytest.approx(precision, abs=1e-6)
    f1 = f1_score(truth, (logits > 0).numpy(), average="macro")
    assert found["val_macro_f1"] == pytest.approx(f1, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("second", [7, pytest.param(0, marks=pytest.mark.slow)])
def test_two_processes_score_several_classes_as_one(start, tmp_path, second):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.rand(50, 4) < 0.3
    file, meeting = tmp_path / "second.pt", f"file://{tmp_path / 'meet'}"
    torch.save((logits[50 - second :], labels[50 - second :]), file)
    other = start("-c", _SECOND_OF_TWO, str(file), meeting)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=2)
    try:
        metric = MultiLabelScores(4)
        metric.update(logits[: 50 - second], labels[: 50 - second])
        together = metric.compute()
    finally:
        torch.distributed.destroy_process_group()
    theirs, errors = other.communicate(timeout=100)
    assert other.returncode == 0, errors
    # Gloo of PyTorch 2.9 says on stdout who it met.
    alone = MultiLabelScores(4)
    alone.update(logits, labels)
    expected = alone.compute()
    assert expected["val_macro_f1"] > 0.1
    assert together == pytest.approx(expected, abs=1e-6)
    assert json.loads(theirs.splitlines()[-1]) == pytest.approx(expected, abs=1e-6)


_SECOND_OF_TWO = """
import json, sys, torch
from convattn.train.classification import MultiLabelScores
logits, labels = torch.load(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=sys.argv[2], rank=1, world_size=2)
metric = MultiLabelScores(4)
if len(logits):
    metric.update(logits, labels)
print(json.dumps({name: float(value) for name, value in metric.compute().items()}))
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def tagged(tmp_path):
    """A table of 16 images with red, green, both or neither, and weights."""
    lines = ["path,tags,split,weight"]
    for number in range(16):
        red, green = number % 2, number // 2 % 2
        Image.new("RGB", (16, 16), (255 * red, 255 * green, number)).save(
            tmp_path / f"{number}.png"
        )
        tags = ["[]", "red", "green", "red|green"][red + 2 * green]
        lines.append(f"{number}.png,{tags},{'val' if number >= 12 else 'train'},{1 + number % 3}")
    file = tmp_path / "tagged.csv"
    file.write_text("\n".join(lines))
    return file


def small(tagged, **data):
    """A run on that table."""
    options = {"name": "folder", "root": str(tagged), "image_size": 32, "batch_size": 4}
    return tiny(tagged.parent / "run", data=DataConfig(**options | data), epochs=1)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_run_of_several_classes_an_image(tagged, mixup, capsys):
    run = train(small(tagged, mixup=mixup))
    assert "trained with optim.loss bce" in capsys.readouterr().err
    saved = json.loads((run.folder / "evaluation.json").read_text())
    assert 0 <= saved["map"] <= 1
    assert set(saved["per_class"]) == {"green", "red"}
    assert "mAP" in (run.folder / "report.md").read_text()
    header = (run.folder / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith("val_loss,val_map,val_macro_f1")
    opened = Run.open(run.folder)
    assert opened.config.optim.loss == "bce"
    assert opened.pretrained_cfg["multi_label"] is True
    assert opened.pretrained_cfg["label_names"] == ["green", "red"]


def test_a_run_of_several_classes_tells_them_one_by_one(tagged):
    run = train(small(tagged))
    model = Run.open(run.folder).load_model()
    image = Image.open(tagged.parent / "3.png").convert("RGB")
    found = {one.index: one.probability for one in classify(model, image)}
    pixels = transform_of(model.pretrained_cfg)(image)[None]
    expected = model(pixels)[0].sigmoid().tolist()
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-6)
    told = explain(model, image, target="red")
    assert told.target.probability == pytest.approx(expected[1], abs=1e-6)
    options = EvaluateConfig(data=small(tagged).data, out=str(tagged.parent / "tested"))
    result, files = run_test(
        "run", lambda **_: model, options, [], run_folder=run.folder, trained_on=options.data
    )
    assert result.map == pytest.approx(run.result.map, abs=1e-6)
    assert all(file.stat().st_size for file in files)
    one = tagged.with_name("test.csv")
    one.write_text("path,label\n1.png,red\n2.png,green\n")
    options = replace(options, data=replace(options.data, root=str(one)), out=str(one.parent / "t"))
    result, _ = run_test(
        "run", lambda **_: model, options, [], run_folder=run.folder, trained_on=options.data
    )
    assert result.num_images == 2


def test_smoothing_of_several_classes_is_refused(tagged):
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 .* leave it out"):
        ClassificationJob(small(tagged, label_smoothing=0.1))


def test_weights_of_training_have_mean_one(tagged):
    job = ClassificationJob(replace(small(tagged), optim=OptimConfig(loss="bce")))
    weights = job.data.train_images.weights
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert job.source.test.weights is None


# --- rare classes


def test_balanced_weights_are_those_of_scikit_learn():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert balanced_weights(labels, 4)[:3] == pytest.approx(expected.tolist())
    assert balanced_weights(labels, 4)[3] == 1


def test_yeses_weigh_as_much_as_noes():
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    weights = torch.tensor(balanced_weights(labels, 3))
    assert weights.tolist() == pytest.approx([3, 1 / 3, 1])
    assert (weights * labels.sum(0))[:2].tolist() == [3, 1]


def test_classes_are_drawn_as_often_as_each_other():
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    chances = balanced_chances(labels)
    sampler = EpochBatches(100, 10, seed=0, chances=chances)
    drawn = torch.zeros(3)
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for batch in sampler:
            drawn += torch.bincount(labels[batch.indices], minlength=3)
    assert (drawn / drawn.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_several_classes_are_drawn_by_their_mean_and_none_is_one_of_them():
    labels = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]]).bool()
    assert balanced_chances(labels).tolist() == pytest.approx([1 / 3, 1 / 3, (1 / 3 + 1) / 2, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_is_the_slow_loop(smoothing):
    logits, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 3, 0])
    targets = dense_targets(labels, 4, smoothing).double()
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total = sum(math.exp(x) for x in row)
        shares = [math.exp(x) / total for x in row]
        expected.append(
            -sum(t * (1 - p) ** 2 * math.log(p) for t, p in zip(target, shares, strict=True))
        )
    assert image_losses("focal", logits, targets).tolist() == pytest.approx(expected)


def test_focal_loss_of_several_classes_asks_each():
    logits, targets = torch.randn(5, 4).double(), torch.randint(2, (5, 4)).double()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        loss = 0.0
        for x, t, weight in zip(row, target, weights.tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            sure = p if t else 1 - p
            loss -= (weight if t else 1) * (1 - sure) ** 2 * math.log(sure)
        expected.append(loss / 4)
    found = image_losses("focal", logits, targets, yes_weights=weights, multi_label=True)
    assert found.tolist() == pytest.approx(expected)


def unbalanced(out, **changes):
    config = tiny(out, epochs=2, **changes)
    return replace(config, data=replace(config.data, mixup=0.0, random_erasing=0.0))


@pytest.mark.parametrize(
    "optim",
    [
        {"class_weights": "balanced"},
        {"loss": "focal"},
        {"loss": "bce", "class_weights": "balanced"},
    ],
)
def test_the_step_is_the_mean_of_what_the_images_count(optim):
    job = ClassificationJob(unbalanced(None, optim=OptimConfig(**optim)))
    task = job.make_task(None)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 3, 3, 9])
    logits = task.eval()(images)
    counts = torch.bincount(job.source.train.labels, minlength=10)
    weights = 130 / (10 * counts[labels]) if "class_weights" in optim else torch.ones(4)
    name = optim.get("loss", "cross_entropy")
    expected = (weights * image_losses(name, logits, F.one_hot(labels, 10).float())).mean()
    torch.testing.assert_close(task.training_step((images, labels), 0), expected)


@pytest.mark.long
def test_balanced_draws_resume_and_judge_by_balanced_accuracy(tmp_path, monkeypatch):
    def config(name):
        made = unbalanced(tmp_path / name)
        return replace(
            made,
            data=replace(made.data, sampler="balanced", val_share=0.2),
            keep="best",
            eval_every=1,
        )

    real = ClassificationTask.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 7:
            raise RuntimeError("power cut")
        return real(self, batch, batch_idx)

    whole = train(config("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", training_step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config("cut"))
    cut = resume(tmp_path / "cut")
    assert digest(cut.folder) == digest(whole.folder)
    assert "val_balanced_accuracy" in (whole.folder / "metrics.csv").read_text().splitlines()[0]
    assert "the best validation balanced accuracy" in (whole.folder / "report.md").read_text()


def test_balanced_accuracy_of_batches_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(50, 6, generator=generator),
        torch.randint(5, (50,), generator=generator),
    )
    metric = BalancedAccuracy(6)
    for start in range(0, 50, 20):
        metric.update(logits[start : start + 20], labels[start : start + 20])
    known = labels.numpy()
    expected = np.mean([(logits.argmax(1).numpy()[known == one] == one).mean() for one in range(5)])
    assert float(metric.compute()) == pytest.approx(expected)


def test_making_up_twice_is_refused():
    with pytest.raises(ValueError, match="both make up for rare classes; give one of them"):
        TrainConfig(
            data=DataConfig(sampler="balanced"), optim=OptimConfig(class_weights="balanced")
        )


@pytest.mark.parametrize(("num_classes", "columns"), [(5, 1), (6, 2)])
def test_no_top5_among_five_classes(num_classes, columns):
    assert len(classification_curves(num_classes).shares) == columns


def test_frozen_statistics_of_batch_norm_are_those_of_the_weights(tmp_path):
    torch.manual_seed(0)
    start = tmp_path / "start.safetensors"
    tensors = timm.create_model("test_resnet", num_classes=10).state_dict()
    statistics = [name for name in tensors if name.endswith(("running_mean", "running_var"))]
    for name in statistics:
        tensors[name] = 0.01 * torch.rand_like(tensors[name]) + 0.5 * name.endswith("var")
    save_file(tensors, start)
    config = tiny(
        tmp_path / "run",
        epochs=1,
        model=ModelConfig(name="test_resnet", checkpoint=str(start)),
        optim=OptimConfig(freeze_batch_norm=True),
    )
    saved = load_file(train(config).folder / "model.safetensors")
    assert all(torch.equal(saved[name], tensors[name]) for name in statistics)
    assert not torch.equal(saved["conv1.0.weight"], tensors["conv1.0.weight"])
    assert not torch.equal(saved["bn1.weight"], tensors["bn1.weight"])
    with pytest.raises(ValueError, match="keeps the statistics of trained weights"):
        tiny(tmp_path / "other", optim=OptimConfig(freeze_batch_norm=True))
