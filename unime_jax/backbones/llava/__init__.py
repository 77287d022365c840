"""LLaVA families: LLaVA-1.6, LLaVA-OneVision, and LLaVE's layout of the latter."""
