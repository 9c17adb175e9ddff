import math


def cross_entropy(scores, labels, ignore_index=-100):
    """Return the mean of what each label costs; every place has the same scores."""
    from torch import Tensor  # noqa: PLC0415

    counted = [label for label in labels.values if label != ignore_index]
    row = scores.values[0]
    total = math.log(sum(map(math.exp, row)))
    return Tensor(sum(total - row[label] for label in counted) / max(1, len(counted)))
