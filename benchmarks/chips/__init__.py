"""Losses compiled for chips that need not be here, and what the programs will cost there."""

import os
import sys

if "--here" not in sys.argv:
    # Before JAX is imported: it compiles for the chip, and must not look for one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
# The library of TPUs lets one process of a machine in, as is right where there is one.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
