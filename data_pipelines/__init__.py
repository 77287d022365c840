"""TFDS builders, one folder a dataset: raw data in, ArrayRecord out, no TensorFlow needed."""
