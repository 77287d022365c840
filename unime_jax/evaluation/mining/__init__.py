"""Search for hard negatives, for job mine: exact top-k on a mesh, and the choice."""
