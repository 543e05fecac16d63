"""Where the tests of Triton kernels run: on a GPU, or on the CPU in Triton's interpreter."""

import triton

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
