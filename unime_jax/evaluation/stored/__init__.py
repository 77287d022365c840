"""What an evaluation leaves on disk: results of its tasks, and what these follow from."""
