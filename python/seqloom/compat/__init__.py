"""Drop-ins for mamba_ssm, causal_conv1d and fla on seqloom's kernels.

Two lines make code that imports these packages, Hugging Face ``transformers`` among it, run on a CPU::

    import seqloom.compat
    seqloom.compat.install()

The modules can be imported directly too: ``seqloom.compat.mamba_ssm.ops.selective_scan_interface``,
``seqloom.compat.causal_conv1d``, ``seqloom.compat.fla.ops`` and so on, under the paths of the originals.
"""

from seqloom.compat._install import install, installed, uninstall

__all__ = ["install", "installed", "uninstall"]
