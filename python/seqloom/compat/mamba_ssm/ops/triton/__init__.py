"""mamba_ssm.ops.triton, without Triton."""
