"""Device code: the rows of a chunk to embeddings, with the shape letters of `unime_jax.batch`.

Modules are plain pytrees that carry Hugging Face's attribute names, so a parameter's path is its
checkpoint name. They hold no randomness, no sharding and no mutable state; parameters are cast to
the activations' dtype where they are used, while norms, softmax and pooling work in float32.
"""
