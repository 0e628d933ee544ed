import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sslref.nn import KeyQueue, MemoryQueue


def rows(start, count, dim=2, **kwargs):
    return torch.arange(start, start + count, **kwargs)[:, None].repeat(1, dim).float()


def test_queue_of_5_fed_with_3_3_and_8_rows():
    queue = MemoryQueue(5, 2)
    assert queue.items().shape == (0, 2)
    for start, count, expected in [(0, 3, [0, 1, 2]), (3, 3, [1, 2, 3, 4, 5]), (6, 8, [9, 10, 11, 12, 13])]:
        queue.enqueue(rows(start, count))
        assert queue.items()[:, 0].tolist() == expected


@pytest.mark.parity("nn.MemoryQueue", against="a Python list", tolerance=0)
@given(size=st.integers(1, 7), counts=st.lists(st.integers(0, 10), max_size=8))
def test_it_holds_the_last_rows_oldest_first(size, counts):
    queue, seen = MemoryQueue(size, 2), []
    for count in counts:
        queue.enqueue(rows(len(seen), count))
        seen.extend(range(len(seen), len(seen) + count))
        assert queue.items().shape == (min(len(seen), size), 2)
        assert queue.items()[:, 1].tolist() == seen[-size:]


def test_rows_are_detached_and_returned_items_never_change():
    queue = MemoryQueue(3, 2)
    weight = torch.ones(3, 2, requires_grad=True)
    queue.enqueue(weight * 2)
    items = queue.items()
    assert not items.requires_grad
    loss = (weight @ items.T).exp().sum()
    queue.enqueue(rows(5, 3))
    assert items.tolist() == [[2.0, 2.0]] * 3
    loss.backward()  # would fail if enqueue had written into the tensor that the loss saved
    assert weight.grad.isfinite().all()


def test_float64_rows_stay_exact_and_half_rows_are_taken():
    queue = MemoryQueue(4, 1)
    queue.enqueue(torch.tensor([[1 / 3]], dtype=torch.float64))
    assert queue.items().item() == 1 / 3
    queue = MemoryQueue(4, 1)
    queue.enqueue(torch.tensor([[0.5]], dtype=torch.bfloat16))
    assert queue.items().dtype == torch.float32
    assert queue.items().item() == 0.5


def test_state_dict_restores_content_and_count(tmp_path):
    queue, other = MemoryQueue(5, 2), MemoryQueue(5, 2)
    queue.enqueue(rows(0, 3))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    other.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    assert torch.equal(queue.items(), other.items())
    other.enqueue(rows(3, 4))
    assert other.items()[:, 0].tolist() == [2, 3, 4, 5, 6]


def test_memory_is_that_of_size_rows():
    queue = MemoryQueue(4, 2)
    for start in range(0, 30, 3):
        queue.enqueue(rows(start, 3))
    assert queue.rows.untyped_storage().nbytes() == 4 * 2 * 4


@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(2, 3), torch.zeros(1, 2, 2)])
def test_rows_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match=r"rows: expected shape \(n, 2\), got"):
        MemoryQueue(5, 2).enqueue(bad)


@pytest.mark.parametrize(("size", "dim", "name"), [(0, 2, "size"), (2, 0, "dim")])
def test_empty_queues_are_refused(size, dim, name):
    with pytest.raises(ValueError, match=name):
        MemoryQueue(size, dim)


@pytest.mark.parity("nn.KeyQueue", against="a Python list", tolerance=0)
@given(size=st.integers(1, 7), shares=st.lists(st.integers(1, 7), max_size=8))
def test_key_queue_is_a_ring_of_unit_rows(size, shares):
    queue = KeyQueue(size, 3, generator=torch.Generator().manual_seed(1))
    ring, at, draw = list(queue.keys.clone()), 0, torch.Generator().manual_seed(size)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(size))
    for n in shares:
        keys = torch.randn(min(n, size), 3, generator=draw)
        queue.push(keys)
        for key in keys:
            ring[at] = F.normalize(key, dim=0)
            at = (at + 1) % size
        assert queue.pointer == at
        torch.testing.assert_close(queue.keys, torch.stack(ring), rtol=0, atol=1e-6)
    assert queue.state_dict().keys() == {"keys", "pointer"}
    assert queue.pointer.dtype == torch.int64


def test_key_queue_of_6_wraps():
    queue = KeyQueue(6, 2)
    queue.pointer.fill_(4)
    for n, pointer in ((2, 0), (4, 4), (4, 2)):
        queue.push(torch.full((n, 2), float(n)))
        assert queue.pointer == pointer
    mine = torch.isclose(queue.keys, torch.full((2,), 0.5**0.5)).all(1)
    assert mine.all()


def test_key_queue_is_drawn_from_the_generator_and_leaves_graphs_alone():
    first, again = (KeyQueue(4, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.keys, again.keys)
    q = torch.ones(1, 3, requires_grad=True)
    loss = (q @ first.keys.T).square().sum()
    first.push(torch.ones(2, 3, requires_grad=True))
    loss.backward()
    assert not first.keys.requires_grad


@pytest.mark.parametrize("shape", [(0, 3), (5, 3), (2, 4), (3,)])
def test_key_queue_refuses_other_rows(shape):
    with pytest.raises(ValueError, match=r"keys: expected shape \(n, 3\)"):
        KeyQueue(4, 3).push(torch.ones(shape))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_key_queue_refuses_empty_sizes(sizes):
    with pytest.raises(ValueError, match="expected >= 1"):
        KeyQueue(*sizes)
