"""Records what the installed teacher says of the sentences; to be run when they have changed."""

import numpy as np

from data_pipelines.mini_nli.prepare import RECORDED, digest, sentences, teach

if __name__ == "__main__":
    found = sentences(0)
    np.savez_compressed(RECORDED, vectors=teach(found)[0], texts=digest(found))
