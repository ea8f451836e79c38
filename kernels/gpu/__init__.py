"""The CUDA operators in Triton, one to a file: the kernel, the launcher that callers use, its plain torch truth, and what it costs.

A launcher writes into tensors it is given and allocates nothing on the device, so it can be captured into a CUDA graph. Tensors are
contiguous unless a docstring says otherwise. A truth has the launcher's signature and runs on any device. Importing needs no triton;
launching does. Features are those of Triton 3.6: no tensor descriptors.
"""
