"""Triton twins of lookups, updates, tower modules and codecs: what runs on CUDA where the CUDA library is not built.

Imported only there (``ops/_cuda.py`` chooses), and by the tests of these kernels, on the CPU under
``TRITON_INTERPRET=1``.
"""
