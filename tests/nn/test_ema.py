import copy

import pytest
import torch
from torch import nn

from sslref.nn import EMATeacher, rising_update


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


def built():
    net = student()
    net(torch.zeros(1, 3, 4, 4))
    return net


def shifted(net, by=1.0):
    net = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p += by
        net[1].running_mean += 5
        net[1].num_batches_tracked += 7
    return net


@pytest.mark.parity("nn.EMATeacher", against="closed form", tolerance=1e-7)
def test_one_update_moves_by_one_minus_m_and_copies_buffers():
    net = built()
    teacher = EMATeacher(net, momentum=0.9)
    before = [p.clone() for p in teacher.module.parameters()]
    moved = shifted(net)
    teacher.update(moved)
    for old, new in zip(before, teacher.module.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1, rtol=0, atol=1e-7)
    assert torch.equal(teacher.module[1].running_mean, moved[1].running_mean)
    assert torch.equal(teacher.module[1].num_batches_tracked, moved[1].num_batches_tracked)


@pytest.mark.parity("nn.EMATeacher", against="float64 loops", tolerance=1e-12)
def test_many_updates_are_the_weighted_sum_of_students():
    net = nn.Linear(3, 2).double()
    teacher = EMATeacher(net, momentum=0.8)
    expected = net.weight.detach().clone()
    for i in range(5):
        net = shifted(nn.Sequential(nn.Identity(), nn.BatchNorm1d(1), net), by=i)[2]
        teacher.update(net, momentum=0.5 if i == 3 else None)
        m = 0.5 if i == 3 else 0.8
        for r in range(2):
            for c in range(3):
                expected[r, c] = m * expected[r, c] + (1 - m) * net.weight[r, c].item()
    torch.testing.assert_close(teacher.module.weight, nn.Parameter(expected, requires_grad=False), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("momentum", "follows"), [(0.0, True), (1.0, False)])
def test_limits_of_the_momentum_are_exact(momentum, follows):
    net = built()
    teacher = EMATeacher(net, momentum=momentum)
    moved = shifted(net)
    teacher.update(moved)
    expected = moved if follows else net
    for p, q in zip(teacher.module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_teacher_is_an_independent_frozen_copy_without_gradient():
    net = built()
    teacher = EMATeacher(net)
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(teacher(x), net(x))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(x.requires_grad_()).requires_grad
    assert all(p.requires_grad for p in net.parameters())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    teacher.update(net)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_arguments_pass_through_and_wrapped_students_are_followed():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, *, factor):
            return self.weight * x * factor

    net = Scale()
    teacher = EMATeacher(net, momentum=0.5)
    assert teacher(torch.tensor([3.0]), factor=2).item() == 6
    with torch.no_grad():
        net.weight += 1
    teacher.update(nn.ModuleDict({"module": net}))  # as a wrapper for several processes would hold it
    assert teacher.module.weight.item() == 1.5


def test_state_dict_restores_the_teacher():
    net = built()
    teacher, other = EMATeacher(net), EMATeacher(shifted(net))
    other.load_state_dict(teacher.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_0_1_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(nn.Linear(1, 1), momentum=momentum)
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(nn.Linear(1, 1)).update(nn.Linear(1, 1), momentum=momentum)


@pytest.mark.parametrize("other", [nn.Linear(2, 1), nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)])
def test_another_student_is_refused(other):
    with pytest.raises(ValueError, match="student: expected"):
        EMATeacher(nn.Linear(1, 1)).update(other)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_a_rising_update_ends_at_one(step, momentum):
    student, other = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    for base, own in ((None, 0.9), (0.9, 0.2)):
        teacher = EMATeacher(student, momentum=own)
        rising_update(teacher, other, step, 10, base=base)
        expected = momentum * student.weight + (1 - momentum) * other.weight
        torch.testing.assert_close(teacher.module.weight, expected, rtol=0, atol=1e-12)
        assert teacher.momentum == own
