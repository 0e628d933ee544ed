"""BatchNorm over the rows of all processes, on any device."""

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _Sum(torch.autograd.Function):
    """Sum over processes. Each process's loss depends on every addend, so gradients are summed too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class _Synced:
    """Before a BatchNorm in the order of base classes: its statistics are those of the joined batch."""

    def forward(self, x: Tensor) -> Tensor:
        batch_statistics = self.training or self.running_mean is None
        if not batch_statistics or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = torch.full((1,), x.numel() / x.shape[1], dtype=dtype, device=x.device)
        total = _Sum.apply(torch.cat([wide.sum(axes), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count  # in two passes, as E[x^2] - E[x]^2 cancels
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                kept = self.running_mean.dtype
                rate = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(kept)
                self.running_mean.lerp_(mean.to(kept), rate)
                self.running_var.lerp_((var * count / (count - 1)).to(kept), rate)
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    pass


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    pass


class SyncedBatchNorm3d(_Synced, nn.BatchNorm3d):
    pass


_SYNCED = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """Make every BatchNorm of a model, in place, count the rows of all processes; in one process nothing changes.

    PyTorch's own SyncBatchNorm needs GPUs; this one sums with whatever the process group offers, and has in every
    process the output, the gradient (after DistributedDataParallel's average) and the running statistics that one
    process has on the joined batch.

    Returns:
        The same model. Parameters, buffers, hooks and names stay, so that its checkpoints fit both kinds.
    """
    for module in model.modules():
        # The class alone is exchanged: a layer that is used in two places stays one layer.
        module.__class__ = _SYNCED.get(type(module), type(module))
    return model
