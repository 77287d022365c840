"""Text encoders: BERT and NV-Embed."""
