"""The tests of Keras's attention layers, run on `SoftmaxAttention`."""

import keras
import pytest
from keras_wheel import load, mark

from keras_cosattn import SoftmaxAttention

pytestmark = pytest.mark.peers


@keras.saving.register_keras_serializable("keras_cosattn_tests")
class GroupedQueryAttention(SoftmaxAttention):
    """`SoftmaxAttention` with the argument names of `keras.layers.GroupedQueryAttention`."""

    def __init__(self, head_dim, num_query_heads, num_key_value_heads, **kwargs):
        super().__init__(
            num_query_heads, head_dim, num_key_value_heads=num_key_value_heads, **kwargs
        )

    def get_config(self):
        config = super().get_config()
        config["head_dim"] = config.pop("key_dim")
        config["num_query_heads"] = config.pop("num_heads")
        del config["value_dim"]
        return config


@pytest.fixture(autouse=True)
def same_settings_afterwards():
    """Keras's test case switches traceback filtering off for the whole process."""
    filtering = keras.config.is_traceback_filtering_enabled()
    yield
    if filtering:
        keras.config.enable_traceback_filtering()


def differs(reason):
    return pytest.mark.xfail(reason=reason, strict=True)


OVERRIDES = "overrides or calls Keras's private method `_compute_attention`"
PRIVATE_METHOD = {
    "test_causal_only_skipped_for_subclass": differs(OVERRIDES),
    "test_compute_attention_combines_causal_and_explicit_mask_fused_fallback": differs(OVERRIDES),
    "test_compute_attention_combines_causal_and_explicit_mask_manual_path": differs(OVERRIDES),
}

MultiHeadAttentionTest = mark(
    load(
        "multi_head_attention_test.py",
        {"layers.MultiHeadAttention": "SoftmaxAttention"},
        SoftmaxAttention=SoftmaxAttention,
    ).MultiHeadAttentionTest,
    PRIVATE_METHOD,
)

OTHER_SIZES = "GroupedQueryAttention needs queries and values of one size, ours and MHA do not"
GroupedQueryAttentionTest = mark(
    load(
        "grouped_query_attention_test.py",
        {"layers.GroupedQueryAttention": "GroupedQueryAttention"},
        GroupedQueryAttention=GroupedQueryAttention,
    ).GroupedQueryAttentionTest,
    PRIVATE_METHOD | {"test_shape_mismatch_error_query_value_dim_mismatch": differs(OTHER_SIZES)},
)
