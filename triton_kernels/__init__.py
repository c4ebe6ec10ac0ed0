"""The operators in Triton, for NVIDIA and AMD GPUs; under TRITON_INTERPRET=1 also on CPU tensors, as a proof.

One file an operator. `stencil.py` and `configuration.py` hold what is decided before a kernel runs (which taps, which
tile), `launch.py` the one way in which kernels are started.
"""
