"""Public evaluation sets: fetched from the hub or from local copies, prepared once as folders."""
