"""Other libraries: our models in mteb, and their models in our evaluation.

Nothing else in the package imports these libraries, or this folder, but job `evaluate`, where it is
asked for one: pip install 'unime_jax[eval]'.
"""
