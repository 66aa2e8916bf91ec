"""Experiments: each script asks a question and answers it with a table, a CSV and a figure."""

import os

# Before JAX is imported, and LAPACK with it, whose threads wait for one another actively: on cores
# that other programs keep busy, Lyapunov exponents then take a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
