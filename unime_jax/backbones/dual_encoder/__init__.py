"""CLIP and SigLIP: encoders of texts and of images with one space of embeddings."""
