"""Private to `planning.costs`: readers of jaxprs and of optimised HLO."""
