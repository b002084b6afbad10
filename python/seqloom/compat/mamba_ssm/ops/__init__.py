"""mamba_ssm.ops."""
