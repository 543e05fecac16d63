import os

import pytest


@pytest.fixture(autouse=os.environ.get("TRITON_INTERPRET") == "1")
def _bfloat16_in_the_interpreter(monkeypatch):
    """It keeps bfloat16 as bits, and multiplies those in tl.dot."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *args):
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return dot(self, a, b, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
