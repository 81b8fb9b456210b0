"""Feature maps of linear attention: `phi(q) . phi(k)` stands where softmax has `exp(q . k)`."""

from keras import ops


def elu_plus_one(x):
    """`elu(x) + 1`: positive everywhere. Katharopoulos et al., 2020, eq. 7."""
    return ops.elu(x) + 1.0


def relu(x):
    """`max(x, 0)`. cosFormer (Qin et al., 2022), eq. 8."""
    return ops.relu(x)


def squared_relu(x):
    """`max(x, 0)^2`. So et al., 2021 (Primer), section 3."""
    return ops.square(ops.relu(x))


def identity(x):
    """`x`: weights can be negative, and their sum can be near zero."""
    return x


FEATURE_MAPS = {
    "elu+1": elu_plus_one,
    "relu": relu,
    "squared_relu": squared_relu,
    "identity": identity,
}


def get(feature_map):
    """The map of that name, or the callable itself.

    Raises ValueError for any other argument, listing the names.
    """
    if callable(feature_map):
        return feature_map
    if feature_map in FEATURE_MAPS:
        return FEATURE_MAPS[feature_map]
    raise ValueError(
        f"`feature_map` must be a callable or one of {sorted(FEATURE_MAPS)}. "
        f"Received: feature_map={feature_map!r}"
    )
