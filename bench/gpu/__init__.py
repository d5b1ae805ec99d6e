"""What one GPU can tell about the ops: ``python -m bench.gpu --out DIR``, of which ``bench/gpu.sh`` makes a part."""
