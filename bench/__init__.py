"""The bench suite: ``python -m bench``. It imports dmt_kernels; nothing in dmt_kernels imports it."""
