"""Readable oracles of the ops in plain PyTorch, with the ops' signatures. For tests and benches: slow on purpose."""
