"""Numbers in nested lists; a parameter is a list of them with a type."""

from torch import cuda, distributed, nn, version

__all__ = ["Tensor", "cuda", "distributed", "nn", "version"]
__version__ = "2.11.0"

float32, float16, bfloat16 = "float32", "float16", "bfloat16"


class Tensor:
    def __init__(self, values, dtype=float32):
        self.values, self.dtype, self.device = values, dtype, "cpu"

    @property
    def shape(self):
        """Of a list of lists, which is all that anybody asks for."""
        return len(self.values), len(self.values[0])

    def __getitem__(self, at):
        if isinstance(at, slice):
            return Tensor(self.values[at], self.dtype)
        first, rest = at if isinstance(at, tuple) else (at, slice(None))
        return Tensor(self.values[first][rest], self.dtype)

    def float(self):
        return Tensor(self.values, float32)

    def item(self):
        return self.values

    def numel(self):
        return sum(len(row) if isinstance(row, list) else 1 for row in self.values)

    def tolist(self):
        return self.values


class no_grad:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def tensor(values, dtype=float32, device="cpu"):
    del device
    return Tensor(values, dtype)


def ones_like(other):
    return Tensor([[1] * len(row) for row in other.values])


def manual_seed(seed):
    from random import seed as plant  # noqa: PLC0415

    plant(seed)
