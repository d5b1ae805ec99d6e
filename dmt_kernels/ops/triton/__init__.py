"""Triton twins of the lookups and the codecs: what runs on CUDA where the CUDA library is not built.

Imported only there (``ops/__init__.py`` chooses), and by the tests of these kernels, on the CPU under
``TRITON_INTERPRET=1``.
"""
