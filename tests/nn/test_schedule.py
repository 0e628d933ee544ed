import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslref.nn import cosine_schedule


@pytest.mark.parity("nn.cosine_schedule", against="closed form", tolerance=1e-12)
@pytest.mark.parametrize(("step", "value"), [(0, 0), (10, 1), (20, 2), (60, 1.25), (100, 0.5), (101, 0.5), (999, 0.5)])
def test_hand_computed_values(step, value):
    assert cosine_schedule(step, 100, base=2, final=0.5, warmup_steps=20) == pytest.approx(value, abs=1e-12)


def test_without_warmup_it_starts_at_base():
    assert cosine_schedule(0, 10, base=3.0) == 3.0
    assert cosine_schedule(10, 10, base=3.0) == 0.0
    assert cosine_schedule(0, 1, base=3.0, final=1.0) == 3.0


def test_agrees_with_torch():
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17, eta_min=0.02)
    for step in range(18):
        assert cosine_schedule(step, 17, base=0.3, final=0.02) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@given(
    total=st.integers(2, 200),
    share=st.floats(0, 0.99),
    base=st.floats(0.01, 10),
    final=st.floats(0, 1),
)
def test_up_then_down_and_never_outside(total, share, base, final):
    warmup, final = int(total * share), final * base
    values = [cosine_schedule(s, total, base=base, final=final, warmup_steps=warmup) for s in range(total + 3)]
    assert all(a <= b for a, b in zip(values[:warmup], values[1 : warmup + 1], strict=True))
    assert all(a >= b - 1e-12 * base for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))
    assert values[warmup] == pytest.approx(base)
    assert values[-1] == pytest.approx(final, abs=1e-9)
    if warmup:
        assert values[0] == 0
        assert values[1] == pytest.approx(base / warmup)
    middle = (total + warmup) / 2
    if middle.is_integer():
        assert values[int(middle)] == pytest.approx((base + final) / 2)
    assert math.isfinite(sum(values))


@pytest.mark.parametrize(
    ("step", "total", "warmup", "name"),
    [(0, 0, 0, "total_steps"), (0, 5, 5, "warmup_steps"), (0, 5, -1, "warmup_steps"), (-1, 5, 0, "step")],
)
def test_bad_input_is_named(step, total, warmup, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        cosine_schedule(step, total, base=1.0, warmup_steps=warmup)
