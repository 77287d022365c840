"""Mutation testing: a fixed sample of small faults, and the tests that should notice them."""
