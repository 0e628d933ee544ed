import pytest
import torch

from sslref import registry
from sslref.evaluate.scenes import scene_test
from sslref.studies import one_probe

SMALL = {"scenes": 32, "labelled": 26, "test": 26}


def test_every_method_stands_for_a_chapter():
    assert {slug for slug, _ in one_probe.METHODS.values()} <= set(registry.papers())
    assert len(one_probe.CLAIMS) == len(one_probe.METHODS)


@pytest.mark.parametrize("method", one_probe.METHODS)
def test_the_network_that_is_probed_is_the_one_that_learns(method):
    scenes = scene_test(0, **SMALL)
    torch.manual_seed(0)
    task = one_probe.METHODS[method][1](scenes.train.__getitem__, len(scenes.train), 8)
    encoder = one_probe.encoder_of(task)
    optimizer = task.optimizer(task.model)
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in learned for p in encoder.parameters())
    assert 2e-3 in {group["lr"] for group in optimizer.param_groups}
    loss = task.loss(task.model, task.batch(torch.Generator().manual_seed(0)))
    (loss["loss"] if isinstance(loss, dict) else loss).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters() if p.ndim > 1)
    assert encoder.features(scenes.test.images).shape == (26, 192, 8, 8)


def test_arms_share_scenes_and_initial_weights():
    first, second = (one_probe.run("random weights", seed=5, device="cpu", steps=0, **SMALL) for _ in range(2))
    assert first == second
    assert set(first) >= {"miou", "figure_ground", "presence", "match"}
    with pytest.raises(ValueError, match="arm: expected one of random weights"):
        one_probe.run("nothing", seed=0, device="cpu", steps=1)
