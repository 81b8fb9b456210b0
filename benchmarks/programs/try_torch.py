"""Call PyTorch's attention kernel."""

import torch

q = torch.ones(1, 2, 8, 4)
y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
assert torch.allclose(y, q), y
print("PyTorch", torch.__version__)
