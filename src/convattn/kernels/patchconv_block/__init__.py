"""PatchConvNet's block."""
