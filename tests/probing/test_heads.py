import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.models.pooling import PooledClassifier
from convattn.probing import heads as module
from convattn.probing.heads import (
    Outcome,
    Training,
    Trial,
    best_trial,
    draw_validation,
    first_rates,
    make_head,
    pool_options,
    wider_rates,
)
from tests.probing.maps import TRANSFORM, Counted, draw_images, write

POOLS = (
    "avg",
    "max",
    "gem",
    "query",
    "residual",
    "ep",
    "simpool",
    "abmil",
    "class",
    "map",
    "aggregation",
)


def train(cache, pools, *, rates=(3e-3,), epochs=4, valid=True, norm=True, drop=0.0, **more):
    trials = [Trial(pool, rate, 0.01, drop) for pool in pools for rate in rates]
    fit = torch.arange(72)
    training = Training(
        trials,
        cache,
        fit,
        torch.arange(72, 90) if valid else None,
        num_classes=3,
        epochs=epochs,
        batch_size=24,
        norm=norm,
        **more,
    )
    training.run()
    return training


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path, network=Counted(8), dtype="float32")


@pytest.mark.parametrize("pool", ["query", "residual", "ep", "class"])
def test_the_same_head_behind_its_network_gets_the_same_weights(cache, pool):
    (trial,) = (training := train(cache, [pool], valid=False)).heads
    network, images = Counted(8).requires_grad_(False), draw_images(90, seed=90)
    head = make_head(pool, 8, 3, seed=0)
    whole = nn.Sequential(network, head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.01)
    steps = 3 * 4
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for epoch in range(4):
        order = torch.randperm(72, generator=torch.Generator().manual_seed(epoch))
        for start in range(0, 72, 24):
            batch = order[start : start + 24]
            logits = whole.train()(TRANSFORM(images.images[batch]))
            optimizer.zero_grad()
            F.cross_entropy(logits, images.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    for name, found in training.heads[trial].state_dict().items():
        torch.testing.assert_close(found, head.state_dict()[name], rtol=1e-3, atol=1e-3)


class AuthorsProbing(nn.Module):
    """EP as billpsomas/efficient-probing computes it: tokens in, all values projected first."""

    def __init__(self, state, num_queries):
        super().__init__()
        self.queries = nn.Parameter(state["queries"].clone())
        self.v = nn.Parameter(state["v.weight"].clone())
        self.num_queries = num_queries

    def forward(self, x):
        batch, channels, *_ = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        attention = (self.queries @ tokens.transpose(1, 2)) * channels**-0.5
        values = (tokens @ self.v.T).reshape(
            batch, -1, self.num_queries, channels // self.num_queries
        )
        x = torch.matmul(attention.softmax(-1)[:, :, None], values.permute(0, 2, 1, 3))
        return x.view(batch, channels)


class AuthorsSimPool(nn.Module):
    """SimPool as billpsomas/simpool computes it with one head and no gamma."""

    def __init__(self, state):
        super().__init__()
        self.norm = nn.LayerNorm(len(state["norm.weight"]), eps=1e-6)
        self.wq, self.wk = (nn.Linear(*state["q.weight"].shape, bias=False) for _ in range(2))
        with torch.no_grad():
            self.wq.weight.copy_(state["q.weight"])
            self.wk.weight.copy_(state["k.weight"])

    def forward(self, x):
        batch, channels, *_ = x.shape
        tokens = x.flatten(2).permute(0, 2, 1)
        gap, normed = tokens.mean(-2)[:, None], self.norm(tokens)
        q, k, v = self.wq(gap), self.wk(normed), normed
        attention = ((q @ k.transpose(-2, -1)) * channels**-0.5).softmax(-1)
        return (attention @ v).view(batch, channels)


@pytest.mark.parametrize("name", ["ep", "simpool"])
def test_the_loss_curve_is_that_of_the_authors_module_on_the_same_maps(cache, name):
    (outcome,) = train(cache, [name], valid=False, norm=True).outcomes.values()
    head = make_head(name, 8, 3, seed=0)
    state = head.pool.pool.state_dict()
    pool = AuthorsProbing(state, 8) if name == "ep" else AuthorsSimPool(state)
    theirs = nn.Sequential(pool, nn.BatchNorm1d(8, affine=False, eps=1e-6), head.fc)
    optimizer = torch.optim.AdamW(theirs.parameters(), weight_decay=0.01)
    losses = []
    for epoch in range(4):
        order = torch.randperm(72, generator=torch.Generator().manual_seed(epoch))
        for start in range(0, 72, 24):
            share = 0.5 * (1 + math.cos(math.pi * len(losses) / 12))
            optimizer.param_groups[0]["lr"] = 3e-3 * share
            batch = order[start : start + 24]
            loss = F.cross_entropy(theirs(cache.read(cache.rows(batch))), cache.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert outcome.losses == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_heads_that_are_trained_together_are_those_trained_alone(cache, drop):
    together = train(cache, POOLS, rates=(1e-3, 1e-2), epochs=1, drop=drop)
    for pool in POOLS:
        alone = train(cache, [pool], rates=(1e-2,), epochs=1, drop=drop)
        (trial,) = alone.heads
        for name, tensor in alone.heads[trial].state_dict().items():
            found = together.heads[trial].state_dict()[name]
            torch.testing.assert_close(found, tensor, rtol=0, atol=0)
        assert together.outcomes[trial].losses == alone.outcomes[trial].losses


def test_one_reading_serves_all_heads(cache, monkeypatch):
    reads = []
    real = cache.read
    monkeypatch.setattr(cache, "read", lambda rows: reads.append(len(rows)) or real(rows))
    train(cache, POOLS, rates=(1e-3, 1e-2), epochs=2)
    assert reads == [24, 24, 24, 18] * 2


@pytest.mark.parametrize("pool", POOLS)
def test_a_head_learns(cache, pool):
    (outcome,) = train(cache, [pool], rates=(3e-2,), epochs=12, valid=False).outcomes.values()
    assert outcome.losses[-1] < 0.7 * outcome.losses[0]


def test_a_head_without_progress_ends_and_the_others_go_on(cache):
    training = train(cache, ["avg"], rates=(1e-7, 1e-2), epochs=10, patience=2)
    slow, fast = training.outcomes.values()
    assert fast.images > 5 * 72
    diverging = train(cache, ["avg"], rates=(1e3, 1e-2), epochs=8, patience=2)
    wild, tame = diverging.outcomes.values()
    assert wild.images < tame.images
    assert slow.loss > fast.loss


def test_a_checkpoint_goes_on_as_if_there_had_been_no_stop(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", -1.0)
    trials = [Trial(pool, 3e-3, 0.01) for pool in ("ep", "avg")]
    parts = (torch.arange(72), torch.arange(72, 90))

    def make():
        return Training(trials, cache, *parts, num_classes=3, epochs=5, batch_size=24)

    whole, stopped = make(), make()
    whole.run()
    real, epochs = stopped._train_epoch, []

    def stop(progress):
        epochs.append(stopped.epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        real(progress)

    monkeypatch.setattr(stopped, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "state.ckpt")
    resumed = make()
    resumed.run(tmp_path / "state.ckpt")
    for trial in trials:
        assert resumed.outcomes[trial].losses == whole.outcomes[trial].losses
        assert resumed.outcomes[trial].loss == whole.outcomes[trial].loss
    with pytest.raises(ValueError, match="is of other heads"):
        Training(trials[:1], cache, *parts, num_classes=3, epochs=5).load(tmp_path / "state.ckpt")


def test_several_classes_an_image_are_learned(tmp_path):
    cache = write(tmp_path, network=Counted(8), several=True)
    training = train(cache, ["avg", "ep", "class"], rates=(3e-2,), epochs=12)
    for outcome in training.outcomes.values():
        assert outcome.losses[-1] < 0.8 * outcome.losses[0]
        assert 0 < outcome.scores["map"] <= 1


@pytest.mark.parametrize(("pool", "name"), [("avg", "fc.bias"), ("class", "fc.fc.bias")])
def test_heads_of_several_classes_begin_at_the_share_of_each(tmp_path, pool, name):
    cache = write(tmp_path, network=Counted(8), several=True)
    cache.labels[:, 2] = False
    fit = torch.arange(72)
    training = Training([Trial(pool, 1e-3, 0.01)], cache, fit, None, num_classes=3, epochs=1)
    (head,) = training.heads.values()
    expected = (cache.labels[fit].float().sum(0) + 0.5) / 73
    torch.testing.assert_close(head.state_dict()[name].sigmoid(), expected)


def test_a_grid_widens_while_its_best_rate_lies_at_its_edge():
    def grid(losses):
        return {Trial("ep", rate, 0.1): Outcome(loss=loss) for rate, loss in losses.items()}

    assert wider_rates(grid({1e-3: 2.0, 3e-3: 1.0, 9e-3: 2.0}), "ep") == []
    (lower,) = wider_rates(grid({1e-3: 1.0, 3e-3: 2.0}), "ep")
    assert lower == Trial("ep", pytest.approx(1e-3 / 3), 0.1)
    (higher,) = wider_rates(grid({1e-3: 2.0, 3e-3: math.inf, 9e-3: 1.0}), "ep")
    assert higher.lr == pytest.approx(27e-3)
    assert len(wider_rates(grid({1e-3: 1.0}), "ep")) == 2


def test_of_equal_trials_the_slower_is_taken():
    outcomes = {Trial("ep", rate, 0.1): Outcome(loss=1.0) for rate in (3e-3, 1e-3)}
    outcomes[Trial("avg", 1e-5, 0.1)] = Outcome(loss=0.0)
    assert best_trial(outcomes, "ep").lr == 1e-3


def test_a_later_seed_begins_round_what_an_earlier_chose():
    assert first_rates(True, 1.0) == (1 / 3, 1.0, 3.0)
    assert first_rates(False, None)[0] > first_rates(True, None)[0]


def test_queries_and_heads_divide_the_channels():
    for pool in ("ep", "map"):
        PooledClassifier(30, 2, pool, **pool_options(pool, 30))
    assert pool_options("ep", 1280) == {"num_queries": 32}


def test_validation_takes_its_share_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 5)
    chosen = draw_validation(labels, 0.2, seed=1, names=("a", "b", "c"))
    assert [int(chosen[labels == k].sum()) for k in range(3)] == [10, 2, 1]
    assert not torch.equal(chosen, draw_validation(labels, 0.2, seed=2, names=("a", "b", "c")))


def test_a_group_is_on_one_side():
    labels, groups = torch.arange(60) % 3, torch.arange(60) // 6
    chosen = draw_validation(labels, 0.2, seed=0, names=("a", "b", "c"), groups=groups)
    assert all(len(set(chosen[groups == group].tolist())) == 1 for group in range(10))
    assert 0 < int(chosen.sum()) <= 24
    with pytest.raises(ValueError, match="class 'a' belong to too few groups"):
        draw_validation(labels, 0.2, seed=0, names=("a", "b", "c"), groups=torch.zeros(60))


def test_a_class_of_four_images_is_refused_by_name():
    labels = torch.tensor([0] * 50 + [1] * 4)
    with pytest.raises(ValueError, match="class 'bee' has 4 training images, and 5 of each"):
        draw_validation(labels, 0.2, seed=0, names=("ant", "bee"))
