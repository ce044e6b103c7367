"""Set before torch is imported: quiet, offline, one thread a process."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest imports readline, which sets both for child processes
os.environ.pop("LINES", None)

import torch

torch.set_num_threads(1)
