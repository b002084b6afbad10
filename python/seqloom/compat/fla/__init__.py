"""fla's linear attention (flash-linear-attention) on seqloom's kernels: `fla.ops` alone."""

__version__ = "0.6.0"  # whose interface this is
