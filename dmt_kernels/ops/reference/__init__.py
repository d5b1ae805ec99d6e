"""Readable oracles of the ops in plain PyTorch. Some also run where there is no kernel (`_cuda.py`, `_engine.py`)."""
