"""causal_conv1d on seqloom's kernels."""

from seqloom.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update

__version__ = "1.6.1"  # whose interface this is
__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
