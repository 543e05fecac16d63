import pytest
import torch

from convattn.explanation.truth.verdict import judge

NUM = 60


def around(mean, spread=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mean + spread * torch.randn(NUM, generator=generator, dtype=torch.float64)


def values_of(**changed):
    """A method that every rule lets pass, and its yardsticks; ``changed`` is of the method."""
    own = {
        "insertion": around(0.8),
        "deletion": around(0.1),
        "road": around(0.4),
        "energy": around(0.7),
        "randomised": around(0.1),
        "other_class": around(0.2),
        "max_sensitivity": around(0.1),
        "agreement": around(0.6),
        "sum_error": around(1e-6, 0),
    }
    for name, value in changed.items():
        own[name] = around(value) if isinstance(value, float) else value
    random = {"insertion": 0.4, "deletion": 0.4, "road": 0.0, "energy": 0.1}
    centre = {"insertion": 0.6, "deletion": 0.3, "road": 0.2, "energy": 0.2}
    return {
        "evidence": {name: value for name, value in own.items() if value is not None},
        "random": {name: around(value, seed=1) for name, value in random.items()},
        "centre": {name: around(value, seed=2) for name, value in centre.items()},
    }


def test_what_passes_every_rule_is_believed():
    verdict = judge("evidence", values_of())
    assert verdict.word == "believe"
    assert len(verdict.reasons) == 9


@pytest.mark.parametrize(
    ("changed", "word", "reason"),
    [
        ({"insertion": 0.1, "road": 0.0}, "do not believe", "no more than random cells"),
        ({"road": 0.0}, "doubt", "it is not sure that the network needs"),
        ({"insertion": 0.1}, "doubt", "it is not sure that the network needs"),
        ({"randomised": 0.9}, "do not believe", "stays much the same when the network's weights"),
        ({"randomised": 0.5}, "doubt", "may stay much the same"),
        ({"sum_error": 0.2}, "do not believe", "does not sum to its logit"),
        ({"insertion": 0.3}, "doubt", "below that of the image's middle"),
        ({"energy": 0.05}, "doubt", "below that of random cells"),
        ({"energy": 0.15}, "doubt", "below that of the image's middle"),
        ({"other_class": 0.95}, "doubt", "the same for every class"),
        ({"max_sensitivity": 2.0}, "doubt", "changes by more than its own size"),
        ({"agreement": -0.1}, "doubt", "other seeds agree no more than by chance"),
    ],
)
def test_a_rule_says_why(changed, word, reason):
    verdict = judge("evidence", values_of(**changed))
    assert verdict.word == word
    assert reason in verdict.reasons[0] or any(reason in one for one in verdict.reasons[:2])


def test_what_is_not_decided_says_how_many_images_would():
    values = values_of(energy=around(0.201, 0.05, seed=5))
    (reason,) = [r for r in judge("evidence", values).reasons if "not surely above" in r]
    assert "images would decide" in reason


@pytest.mark.parametrize(("gain", "word"), [(0.15, "doubt"), (0.05, "do not believe")])
def test_what_more_images_would_probably_decide_is_a_doubt(gain, word):
    values = values_of()
    spread = torch.tensor([-0.75, 0.75], dtype=torch.float64).repeat(NUM // 2)  # interval +- 0.19
    own, random = values["evidence"], values["random"]
    own["insertion"] = own["deletion"] + random["insertion"] - random["deletion"] + gain + spread
    own["road"] = random["road"] + gain + spread
    assert judge("evidence", values).word == word


def test_what_was_not_measured_has_no_say():
    values = values_of(agreement=None, sum_error=None, energy=None, road=None)
    verdict = judge("evidence", values)
    assert verdict.word == "believe"
    assert len(verdict.reasons) == 5


def test_the_sum_of_gradients_is_a_rule_of_steps():
    values = values_of(sum_error=around(0.02, 0))
    values["integrated_gradients"] = values.pop("evidence")
    assert judge("integrated_gradients", values).word == "believe"
    values["integrated_gradients"]["sum_error"] += 1
    assert judge("integrated_gradients", values).word == "doubt"


def test_maps_of_a_network_that_has_not_learned_are_doubted():
    labels = torch.tensor([0] * 45 + [1] * 15)
    guess = (labels == 0).double() - (labels == 0).double()
    verdict = judge("evidence", values_of(), knows=guess)
    assert verdict.word == "doubt"
    assert "explain a guess" in verdict.reasons[0]
    learned = torch.ones(NUM, dtype=torch.float64) - (labels == 0).double()
    verdict = judge("evidence", values_of(), knows=learned)
    assert verdict.word == "believe"
    assert any("right more often than the commonest class" in told for told in verdict.reasons)
    few = (torch.arange(NUM) == NUM - 1).double()  # one image more is no proof
    assert judge("evidence", values_of(), knows=few).word == "doubt"
