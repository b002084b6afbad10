"""mamba_ssm.ops.triton.mamba3: what the package imports of Mamba-3, which seqloom does not have."""
