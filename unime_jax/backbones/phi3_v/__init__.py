"""Phi-3-Vision and Phi-3.5-Vision."""
