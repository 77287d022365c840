"""Five texts and their vectors, for tests of the embedding store."""

import numpy as np

TEXTS = ["a red circle", "größe\u2028two", "", "blue\nsquare", "a\rb"]
VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
