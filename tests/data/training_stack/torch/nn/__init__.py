from torch.nn import functional

__all__ = ["Parameter", "functional"]


class Parameter:
    """What is trained or, without *requires_grad*, only there."""

    def __init__(self, data, *, requires_grad=True):
        self.data, self.requires_grad = data, requires_grad

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def device(self):
        return self.data.device
