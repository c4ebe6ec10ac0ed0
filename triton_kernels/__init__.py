"""The operators in Triton, for NVIDIA and AMD GPUs; under TRITON_INTERPRET=1 also on CPU tensors, as a proof.

One file an operator. `stencil.py` holds the tile that a program computes and the convolution on it, `launch.py` the one
way in which kernels are started, `reduction.py` the sums of the tiles. Nothing depends on whether a kernel is compiled
or interpreted: what is tested is what is compiled.
"""
