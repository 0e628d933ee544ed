import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, norm

from sslref.evaluate import bootstrap_interval


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parity("evaluate.bootstrap_interval", against="scipy.stats.bootstrap", tolerance=0.01)
def test_ends_are_those_of_scipy():
    values = torch.rand(40, generator=generator()).double()
    low, high = bootstrap_interval(values, level=0.9, resamples=20000, generator=generator(1))
    random = np.random.default_rng(0)
    options = {"method": "percentile", "confidence_level": 0.9, "n_resamples": 20000}
    expected = bootstrap((values.numpy(),), np.mean, rng=random, **options).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.01)


def test_ends_approach_the_normal_interval_and_shrink_with_the_test_set():
    widths = []
    for count in (100, 1600):
        values = torch.rand(count, generator=generator()) < 0.8
        low, high = bootstrap_interval(values, generator=generator(1))
        mean = values.double().mean().item()
        half = norm.ppf(0.975) * np.sqrt(mean * (1 - mean) / count)
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.3 * half)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)


def test_coverage_on_a_simulated_classifier():
    hits = 0
    for seed in range(200):
        values = torch.rand(80, generator=generator(seed)) < 0.7
        low, high = bootstrap_interval(values, level=0.9, resamples=300, generator=generator(seed + 1000))
        hits += low <= 0.7 <= high
    assert 0.84 <= hits / 200 <= 0.95


def test_same_generator_same_interval_and_constants_have_none():
    values = torch.rand(30, generator=generator())
    assert bootstrap_interval(values, generator=generator(5)) == bootstrap_interval(values, generator=generator(5))
    assert bootstrap_interval(values, generator=generator(5)) != bootstrap_interval(values, generator=generator(6))
    assert bootstrap_interval(torch.ones(5)) == (1.0, 1.0)


def test_a_large_test_set_is_drawn_in_pieces():
    values = torch.arange(2**23) % 2  # two resamples fill a piece
    low, high = bootstrap_interval(values, resamples=5, generator=generator())
    assert 0.499 < low < high < 0.501


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (torch.zeros(0), {}, "values"),
        (torch.zeros(2, 2), {}, "values: expected shape"),
        (torch.zeros(3), {"level": 1.0}, "level"),
        (torch.zeros(3), {"resamples": 0}, "resamples"),
    ],
)
def test_bad_input_is_named(values, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, **options)
