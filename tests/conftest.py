"""What every test runs under: its share of the cores; and memory from torch.empty holds NaN, so that a kernel that
forgets to write is seen."""

import os

import pytest

# Two workers with threads on all cores spin while the other's threads are in the way: a training of 400 steps took 210
# seconds for 20. OpenMP reads this when torch is loaded, here or by a process that a test starts.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
