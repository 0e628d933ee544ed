import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.nn import GCN, gcn_norm, undirected

PATH = torch.tensor([[0, 1], [1, 2]])


def graph(num_nodes, seed=0, edges=20):
    return torch.randint(num_nodes, (2, edges), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parity("nn.gcn_norm", against="float64 loops", tolerance=1e-12)
@given(num_nodes=st.integers(1, 8), seed=st.integers(0, 99), edges=st.integers(0, 20))
def test_norm_is_that_of_the_definition(num_nodes, seed, edges):
    edge_index = graph(num_nodes, seed, edges)
    adjacency = [[float(i == j) for j in range(num_nodes)] for i in range(num_nodes)]
    for i, j in edge_index.T.tolist():
        adjacency[i][j] = adjacency[j][i] = 1.0
    degree = [sum(row) for row in adjacency]
    expected = torch.tensor(
        [[a / math.sqrt(degree[i] * degree[j]) for j, a in enumerate(row)] for i, row in enumerate(adjacency)],
        dtype=torch.float64,
    )
    a_hat = gcn_norm(edge_index, num_nodes, dtype=torch.float64)
    torch.testing.assert_close(a_hat, expected, rtol=0, atol=1e-12)
    sparse = gcn_norm(edge_index, num_nodes, sparse=True, dtype=torch.float64)
    assert torch.equal(sparse.to_dense(), a_hat)


@given(num_nodes=st.integers(1, 8), seed=st.integers(0, 99), edges=st.integers(0, 20))
def test_undirected_holds_both_directions_once_in_order(num_nodes, seed, edges):
    edge_index = graph(num_nodes, seed, edges)
    pairs = {(i, j) for i, j in edge_index.T.tolist() if i != j}
    assert [tuple(p) for p in undirected(edge_index, num_nodes).T.tolist()] == sorted(pairs | {p[::-1] for p in pairs})


def test_direction_repetition_and_self_loops_change_nothing():
    noisy = torch.tensor([[1, 0, 2, 1, 1], [0, 1, 1, 1, 0]])
    assert torch.equal(gcn_norm(noisy, 4), gcn_norm(PATH, 4))
    assert gcn_norm(PATH, 4)[3].tolist() == [0, 0, 0, 1]  # a node without edges keeps itself
    assert gcn_norm(PATH, 4).dtype == torch.float32


@pytest.mark.parity("nn.GCN", against="torch_geometric GCNConv", tolerance=1e-6)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # raised by importing torch_geometric
@pytest.mark.parametrize("sparse", [False, True])
def test_agrees_with_pytorch_geometric(sparse):
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCNConv
    from torch_geometric.utils import remove_self_loops, to_undirected

    generator = torch.Generator().manual_seed(1)
    edge_index = graph(12)
    both = to_undirected(remove_self_loops(edge_index)[0], num_nodes=12)
    net, x = GCN(5, 7, 3).eval(), torch.randn(12, 5, generator=generator)
    torch.nn.init.normal_(net.first.bias, generator=generator)
    first, second = GCNConv(5, 7), GCNConv(7, 3)
    for ours, theirs in [(net.first, first), (net.second, second)]:
        theirs.lin.weight, theirs.bias = ours.weight, ours.bias
    a_hat = gcn_norm(edge_index, 12, sparse=sparse)
    hidden = first(x, both).relu()
    torch.testing.assert_close(net.hidden(x, a_hat), hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(net(x, a_hat), second(hidden, both), rtol=0, atol=1e-6)


def test_sparse_and_dense_have_the_same_gradients():
    gradients = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net, x = GCN(5, 4, 3, dropout=0.0).double(), torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
        net(x, gcn_norm(graph(6), 6, sparse=sparse, dtype=torch.float64)).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    for dense, sparse in zip(*gradients, strict=True):
        torch.testing.assert_close(dense, sparse)
        assert dense.abs().sum() > 0


def test_dropout_acts_in_training_only_and_on_the_hidden_layer():
    torch.manual_seed(0)
    net, x, a_hat = GCN(4, 50, 2, dropout=0.9), torch.ones(3, 4), gcn_norm(PATH, 3)
    assert torch.equal(net.hidden(x, a_hat), net.eval().hidden(x, a_hat))
    assert torch.equal(net(x, a_hat), net(x, a_hat))
    net.train()
    assert not torch.equal(net(x, a_hat), net(x, a_hat))
    # with one input feature, dropout on the input could only zero or scale the whole row
    single = GCN(1, 50, 2, dropout=0.5)
    trained, still = single(x[:, :1], torch.eye(3)), single.eval()(x[:, :1], torch.eye(3))
    assert not (trained.isclose(2 * still) | (trained == 0)).any()


@pytest.mark.parametrize("sparse", [False, True])
def test_autocast_agrees(sparse):
    torch.manual_seed(0)
    net, x = GCN(5, 7, 3).eval(), torch.randn(12, 5)
    a_hat = gcn_norm(graph(12), 12, sparse=sparse)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, a_hat)
    torch.testing.assert_close(half.float(), net(x, a_hat), rtol=0.05, atol=0.03)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: gcn_norm(torch.zeros(3, 2, dtype=torch.long), 3),
            r"edge_index: expected shape \(2, E\), got \(3, 2\)",
        ),
        (lambda: gcn_norm(PATH, 2), r"edge_index: expected indices in \[0, 2\), got 0 to 2"),
        (lambda: gcn_norm(PATH - 1, 3), "got -1 to 1"),
        (lambda: gcn_norm(PATH[:, :0], 0), "num_nodes"),
        (lambda: GCN(4, 3, 2)(torch.zeros(3, 5), torch.eye(3)), r"x: expected shape \(N, 4\), got \(3, 5\)"),
        (lambda: GCN(4, 3, 2)(torch.zeros(3, 4), torch.eye(4)), r"a_hat: expected shape \(3, 3\), got \(4, 4\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
