import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.evaluate import certified_accuracy

PREDICTIONS = torch.tensor([0, 1, -1, 2, 1])
RADII = torch.tensor([0.5, 0.2, 0.0, 1.0, 0.9])
TARGETS = torch.tensor([0, 1, 1, 2, 0])


def test_by_hand():
    found = certified_accuracy(PREDICTIONS, RADII, TARGETS, torch.tensor([0.0, 0.2, 0.5, 0.6, 1.0, 1.1]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.2, 0.0])


@pytest.mark.parity("evaluate.certified_accuracy", against="float64 loops", tolerance=1e-15)
@given(seed=st.integers(0, 999))
def test_it_counts_and_never_rises(seed):
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = (torch.randint(-1, 3, (12,), generator=generator) for _ in range(2))
    targets = targets.clamp_min(0)
    radii = torch.where(predictions < 0, 0.0, torch.rand(12, generator=generator, dtype=torch.float64))
    at = torch.linspace(0, 1, 9, dtype=torch.float64)
    found = certified_accuracy(predictions, radii, targets, at)
    for r, value in zip(at.tolist(), found.tolist(), strict=True):
        hits = sum(bool(predictions[i] == targets[i] and radii[i] >= r) for i in range(12))
        assert value == pytest.approx(hits / 12, abs=1e-15)
    assert (found.diff() <= 0).all()
    assert found[0].item() == pytest.approx((predictions == targets).double().mean().item())


def test_an_abstention_is_never_right():
    minus = torch.full((3,), -1)
    assert certified_accuracy(minus, torch.ones(3), minus, torch.zeros(1)).item() == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((PREDICTIONS, RADII[:2], TARGETS, RADII), r"radii: expected shape \(5,\), got \(2,\)"),
        ((PREDICTIONS, RADII, TARGETS[:2], RADII), "targets: expected shape"),
        ((PREDICTIONS[:0], RADII[:0], TARGETS[:0], RADII), "predictions"),
        ((PREDICTIONS[None], RADII, TARGETS, RADII), "predictions"),
        ((PREDICTIONS, RADII, TARGETS, RADII.mean()), r"at: expected shape \(R,\)"),
    ],
)
def test_bad_input_is_named(args, words):
    with pytest.raises(ValueError, match=words):
        certified_accuracy(*args)
