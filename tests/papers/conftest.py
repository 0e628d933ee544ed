import pytest
import torch


@pytest.fixture
def cifar10(tmp_path):
    """A folder like CIFAR-10's binary version: five files of eight random pictures."""
    records = torch.randint(0, 256, (8, 3073), dtype=torch.uint8)
    records[:, 0] %= 10
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(records.numpy().tobytes())
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return tmp_path
