import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.evaluate import effective_rank, spectrum


def rows(n=9, dim=5, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parity("evaluate.spectrum", against="eigenvalues by NumPy", tolerance=1e-12)
@pytest.mark.parametrize(("n", "dim"), [(9, 5), (4, 7)])
def test_squares_are_the_eigenvalues_of_the_covariance(n, dim):
    z = rows(n, dim) + 3
    expected = np.linalg.eigvalsh(np.cov(z.numpy(), rowvar=False, bias=True))[::-1][: min(n, dim)]
    got = spectrum(z, center=True).square() / n
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(spectrum(z).numpy(), np.linalg.svd(z.numpy(), compute_uv=False), atol=1e-12)


@pytest.mark.parity("evaluate.effective_rank", against="closed form", tolerance=1e-12)
def test_ranks_by_hand():
    assert effective_rank(torch.eye(4)) == pytest.approx(4, abs=1e-12)
    assert effective_rank(torch.eye(4), center=True) == pytest.approx(3, abs=1e-7)
    assert effective_rank(torch.diag(torch.tensor([2.0, 2, 0]))) == pytest.approx(2, abs=1e-12)
    # singular values 3 and 1, shares 3/4 and 1/4: exp(H) = 4 / 3^(3/4)
    assert effective_rank(torch.diag(torch.tensor([3.0, -1]))) == pytest.approx(4 / 3**0.75, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_point_has_rank_one_and_nothing_around_its_mean(dtype):
    z = rows(1, 6, dtype=torch.float64).to(dtype).expand(50, 6)
    assert effective_rank(z) == pytest.approx(1, abs=1e-12)
    assert effective_rank(z, center=True) == 0
    assert effective_rank(0 * z) == 0
    assert spectrum(z).dtype == torch.float64


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10_000))
def test_rank_is_bounded_and_blind_to_rotation_and_scale(n, dim, seed):
    z = rows(n, dim, seed)
    rank = effective_rank(z)
    assert 1 - 1e-9 <= rank <= min(n, dim) + 1e-9
    turn = torch.linalg.qr(rows(dim, dim, seed + 1)).Q
    assert effective_rank(7 * z @ turn) == pytest.approx(rank, rel=1e-9)
    assert effective_rank(z.T) == pytest.approx(rank, rel=1e-9)


def test_a_common_shift_counts_only_without_center():
    z = rows(200, 8)
    assert effective_rank(z + 100, center=True) == pytest.approx(effective_rank(z, center=True), rel=1e-9)
    assert effective_rank(z + 100) < 2 < 7 < effective_rank(z)


def test_integers_count_as_they_are():
    z = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert effective_rank(z) == effective_rank(z.double())


@pytest.mark.parametrize("function", [spectrum, effective_rank])
@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 3, 4)])
def test_shapes_are_checked(function, shape):
    with pytest.raises(ValueError, match="z: expected shape"):
        function(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_must_be_finite(bad):
    with pytest.raises(ValueError, match="z: expected finite"):
        effective_rank(torch.tensor([[1.0, bad]]))
