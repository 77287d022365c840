"""Device code. Letters used in every shape and einsum of this package:

B rows, T tokens (S as keys), A rotary axes, D width, F hidden width of an MLP, N query heads,
K key/value heads, H head size, L layers, R rank of LoRA, I tiles, P patches a tile, C bytes of a
patch.

Modules are plain pytrees that carry Hugging Face's attribute names, so a parameter's path is its
checkpoint name. They hold no randomness, no sharding and no mutable state; parameters are cast to
the activations' dtype where they are used, while norms, softmax and pooling work in float32.
"""
