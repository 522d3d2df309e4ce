"""The operations of a Mamba-2 mixer, in plain torch, compiled for a CPU, and by CUDA kernels.

`backend` and `cpu.use` choose which code computes; callers use `ops`, `step` and `cosine`.
"""
