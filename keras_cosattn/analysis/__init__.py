"""Analysis of attention: the weights of any layer as matrices, and measures of these matrices.

Qin et al., 2022 (cosFormer), explain softmax attention by two properties: its weights are never
negative, and they concentrate (there: near the diagonal). A third is dilution: the more keys there
are, the closer every weight comes to the mean 1/n. `negative_share`, `mass_within`, `entropy` and
`dilution` measure them, `draw` shows them:

```python
from keras_cosattn import analysis

weights = analysis.attention_weights(model, x)  # layer path -> (b, h, t, s)
analysis.mass_within(weights["block/self_attention"], 8)
analysis.draw(weights, path="attention.png")
```

Weights are NumPy arrays of shape `(b, h, t, s)`: those that a layer computes or, if it computes
sums only, those that its sums imply. The mass of a weight is its magnitude `|w|`, because some
layers have negative weights. `seen` is True where a query may look at a key, and broadcasts to
`(b, h, t, s)`; all other entries (padding, the future) are ignored, whatever they hold. `seen_keys`
makes it. The default, None, is True everywhere.
"""

from keras_cosattn.analysis.drawing import draw, draw_routes
from keras_cosattn.analysis.measures import (
    Dilution,
    dilution,
    entropy,
    mass_within,
    negative_mass,
    negative_share,
)
from keras_cosattn.analysis.weights import attention_weights, seen_keys

__all__ = [
    "Dilution",
    "attention_weights",
    "dilution",
    "draw",
    "draw_routes",
    "entropy",
    "mass_within",
    "negative_mass",
    "negative_share",
    "seen_keys",
]
