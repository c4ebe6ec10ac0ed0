"""The definitions: every operator in plain PyTorch, in any dtype, as the paper writes it.

Each is the oracle (in float64), the fallback where nothing faster can run, and the path that export takes.
"""
