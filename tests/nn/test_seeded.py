import torch
from torch import nn

from sslref.nn import seeded


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = seeded(5, lambda: nn.Linear(2, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, seeded(5, lambda: nn.Linear(2, 2)).weight)
    assert not torch.equal(first.weight, seeded(6, lambda: nn.Linear(2, 2)).weight)
