"""mamba_ssm's ops on seqloom's kernels. Its modules and models are the real package's, which runs on these ops."""

from seqloom.compat.mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn

__version__ = "2.3.2"  # whose interface this is
__all__ = ["mamba_inner_fn", "selective_scan_fn"]
