"""Retrieval: queries and corpus as read from disk, ranking of a whole corpus, and its scores."""
