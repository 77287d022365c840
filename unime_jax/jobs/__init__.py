"""Jobs: one verb a file, each `run(config, workdir)`."""
