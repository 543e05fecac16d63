"""Where the tests of Triton kernels run: on a GPU, or on the CPU in Triton's interpreter."""

from convattn.modes import interprets_triton

INTERPRETED = interprets_triton()
DEVICE = "cpu" if INTERPRETED else "cuda"
