"""Masks that zero the smallest weights: a share of them, or m of every n."""

import numpy as np

# A share of zeros, or (m, n): m zeros among every n consecutive inputs of an output.
Target = float | tuple[int, int]


def check_target(target: Target) -> None:
    """Rejects an invalid sparsity.

    Raises:
        ValueError: Not a share above 0 and below 1, nor two whole numbers 0 < m < n.
    """
    if isinstance(target, tuple):
        if len(target) == 2 and all(type(each) is int for each in target):
            zeros, group = target
            if 0 < zeros < group:
                return
        raise ValueError(
            f"sparsity is {target!r}; expected (m, n) for m zeros in every n weights, as in (2, 4)"
        )
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < 1:
        raise ValueError(
            f"sparsity is {target!r}; expected a share of zeros above 0 and below 1, such as 0.8"
        )


def share(target: Target) -> float:
    """The share of zeros of a target."""
    return target[0] / target[1] if isinstance(target, tuple) else float(target)


def zero_share(values: list[np.ndarray]) -> float:
    """Share of exact zeros in some arrays together."""
    zeros = sum(int(np.count_nonzero(value == 0)) for value in values)
    return zeros / max(1, sum(value.size for value in values))


def fits(shape: tuple[int, ...], target: Target) -> bool:
    """Whether weights can be grouped: n divides their inputs, the last axis but one."""
    return not isinstance(target, tuple) or shape[-2] % target[1] == 0


def smallest(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Makes a mask that zeroes the smallest absolute values; ties are zeroed in index order.

    Args:
        values: Weights of any shape.
        sparsity: Share to set to zero, from 0 to below 1; at least one weight is kept.

    Returns:
        Mask of the shape and dtype of `values`: 0 or 1.
    """
    kept = max(round(values.size * (1 - sparsity)), 1)
    order = np.argsort(np.abs(values), axis=None, kind="stable")
    mask = np.ones(values.size, values.dtype)
    mask[order[: values.size - kept]] = 0
    return mask.reshape(values.shape)


def smallest_of_groups(values: np.ndarray, zeros: int, group: int) -> np.ndarray:
    """Makes a mask that zeroes the `zeros` smallest of every `group` inputs, for each output.

    Args:
        values: Kernel of shape (…, inputs, outputs); `group` divides the inputs.
        zeros: Number of zeros in each group.
        group: Number of consecutive inputs in a group.

    Returns:
        Mask of the shape and dtype of `values`: 0 or 1.
    """
    by_output = np.moveaxis(np.abs(values), -2, -1)
    groups = by_output.reshape(*by_output.shape[:-1], -1, group)
    order = np.argsort(groups, axis=-1, kind="stable")
    mask = np.ones(groups.shape, values.dtype)
    np.put_along_axis(mask, order[..., :zeros], 0, axis=-1)
    return np.moveaxis(mask.reshape(by_output.shape), -1, -2)


def reached(values: np.ndarray, target: Target) -> bool:
    """Whether weights have the zeros that a target asks for, rounded to whole weights."""
    if isinstance(target, tuple):
        zeros, group = target
        by_output = np.moveaxis(values == 0, -2, -1)
        return bool((by_output.reshape(-1, group).sum(axis=-1) >= zeros).all())
    # tfmot counts in float32, and leaves one weight at least.
    wanted = min(target * values.size - 0.5 - values.size * 2**-22, values.size - 1)
    return int(np.count_nonzero(values == 0)) >= wanted
