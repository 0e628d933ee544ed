import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.nn import MemoryQueue


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
