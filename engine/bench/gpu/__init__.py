"""`make gpu`: what the engine reaches on a CUDA device, beside what the machine itself reaches, in one command of ten minutes at most.

`python -m quiesce.engine.bench.gpu` needs torch, triton and a GPU, and what else the single blocks name; it fetches nothing. Each block
runs in a process of its own, within its time: what fails or hangs costs that block alone. `--dry` runs every block at toy size on the
CPU, in this process, with the operators' plain torch truths in place of the kernels: that it runs is all that it shows.
"""
