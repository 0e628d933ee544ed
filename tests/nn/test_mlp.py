"""The perceptron of the heads, against its formula."""

import pytest
import torch

from sslref.nn import mlp


@pytest.mark.parametrize("bias", [False, True])
def test_mlp_is_two_products_with_batch_norm_and_relu_between(bias):
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = mlp(3, 5, 2, bias=bias).double()
    first, last = net[0], net[-1]
    assert (first.bias is not None) == bias
    hidden = x @ first.weight.T + (first.bias if bias else 0)
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(net(x), hidden.clamp(min=0) @ last.weight.T + last.bias, rtol=0, atol=1e-12)
