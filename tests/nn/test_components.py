"""Connected components against SciPy's, and their numbering."""

import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as scipy_components

from sslref.nn import connected_components


@pytest.mark.parity("nn.connected_components", against="SciPy's csgraph", tolerance=0.0)
@pytest.mark.parametrize("edges", [0, 5, 20, 40, 80, 400])
def test_random_graphs(edges):
    for seed in range(8):
        drawn = torch.randint(50, (2, edges), generator=torch.Generator().manual_seed(seed))
        found = connected_components(drawn, 50)
        links = coo_matrix((torch.ones(edges).numpy(), drawn.numpy()), shape=(50, 50))
        count, labels = scipy_components(links, directed=False)
        assert found.dtype == torch.int64
        assert found.unique().tolist() == list(range(count))
        same = torch.from_numpy(labels)
        assert torch.equal(found[:, None] == found, same[:, None] == same)
        firsts = [int((found == c).nonzero()[0]) for c in range(count)]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize("order", ["rising", "falling", "random", "zigzag"])
def test_long_chains(order):
    """A path takes logarithmically many rounds, however its nodes are numbered."""
    nodes = torch.arange(3000)
    if order == "falling":
        nodes = nodes.flip(0)
    elif order == "random":
        nodes = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    elif order == "zigzag":
        nodes = torch.stack([nodes[:1500], nodes[1500:]], 1).flatten()
    assert (connected_components(torch.stack([nodes[:-1], nodes[1:]]), 3000) == 0).all()
    halves = torch.stack([nodes[:-1], nodes[1:]])[:, torch.arange(2999) != 999]
    assert connected_components(halves, 3000).max() == 1


def test_a_star_whose_centre_is_last_and_no_edge_at_all():
    assert (connected_components(torch.stack([torch.arange(9), torch.full((9,), 9)]), 10) == 0).all()
    assert connected_components(torch.zeros(2, 0, dtype=torch.int64), 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"edge_index: expected shape \(2, E\)"):
        connected_components(torch.zeros(3, 2, dtype=torch.int64), 3)
