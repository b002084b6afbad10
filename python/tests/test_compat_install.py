"""install() and uninstall(): what imports find, with and without the real packages."""

import importlib.util
import pathlib
import subprocess
import sys
import textwrap

import pytest
import torch

from seqloom import compat

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATHS = {
    "mamba_ssm": ["selective_scan_fn", "mamba_inner_fn"],
    "mamba_ssm.ops.selective_scan_interface": [
        "selective_scan_fn", "selective_scan_ref", "mamba_inner_fn", "mamba_inner_ref",
    ],
    "mamba_ssm.ops.triton.ssd_combined": [
        "mamba_chunk_scan_combined", "mamba_chunk_scan", "mamba_split_conv1d_scan_combined",
        "ssd_chunk_scan_combined_ref", "ssd_selective_scan", "mamba_conv1d_scan_ref", "mamba_split_conv1d_scan_ref",
    ],
    "mamba_ssm.ops.triton.ssd_chunk_state": [
        "chunk_state", "chunk_state_ref", "chunk_state_varlen", "_chunk_cumsum_fwd", "_chunk_state_fwd",
    ],
    "mamba_ssm.ops.triton.ssd_state_passing": ["state_passing", "state_passing_ref", "_state_passing_fwd"],
    "mamba_ssm.ops.triton.ssd_chunk_scan": ["chunk_scan", "chunk_scan_ref"],
    "mamba_ssm.ops.triton.selective_state_update": ["selective_state_update", "selective_state_update_ref"],
    "mamba_ssm.ops.triton.layernorm_gated": ["RMSNorm", "LayerNorm", "layernorm_fn", "rmsnorm_fn", "rms_norm_ref"],
    "mamba_ssm.ops.triton.layer_norm": ["RMSNorm", "layer_norm_fn", "rms_norm_fn", "layer_norm_ref", "rms_norm_ref"],
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined": ["mamba3_siso_combined"],
    "causal_conv1d": ["causal_conv1d_fn", "causal_conv1d_update"],
    "causal_conv1d.causal_conv1d_interface": ["causal_conv1d_ref", "causal_conv1d_update_ref"],
    "causal_conv1d.causal_conv1d_varlen": ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"],
    "causal_conv1d.cpp_functions": ["causal_conv1d_fwd_function", "causal_conv1d_bwd_function"],
    "fla.ops": ["chunk_gla", "fused_recurrent_gla", "chunk_retention", "chunk_simple_gla", "chunk_gdn"],
    "fla.ops.gla": ["chunk_gla", "fused_chunk_gla", "fused_recurrent_gla"],
    "fla.ops.gla.chunk": ["chunk_gla"],
    "fla.ops.gla.naive": ["naive_recurrent_gla"],
    "fla.ops.simple_gla.parallel": ["parallel_simple_gla"],
    "fla.ops.simple_gla.naive": ["naive_recurrent_simple_gla", "naive_chunk_simple_gla", "naive_parallel_simple_gla"],
    "fla.ops.delta_rule": ["chunk_delta_rule", "fused_recurrent_delta_rule"],
    "fla.ops.delta_rule.naive": ["delta_rule_recurrence", "delta_rule_chunkwise"],
    "fla.ops.gated_delta_rule": ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"],
    "fla.ops.gated_delta_rule.naive": ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"],
    "fla.ops.gated_delta_rule.gate": ["naive_gdn_gate", "fused_gdn_gate"],
    "fla.ops.retention.naive": ["naive_retention"],
    "fla.ops.linear_attn.naive": ["naive_recurrent_linear_attn", "naive_chunk_linear_attn"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_afterwards():
    compat.uninstall()
    yield
    compat.uninstall()


def is_real(name):
    return importlib.util.find_spec(name.partition(".")[0]) is not None


@pytest.mark.parametrize("path", PATHS)
def test_import_paths(path):
    if is_real(path):
        pytest.skip("the package itself is installed")
    compat.install()
    module = importlib.import_module(path)
    for name in PATHS[path]:
        assert callable(getattr(module, name)), name
    compat.uninstall()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(path)


def test_twice_is_once():
    before = list(sys.meta_path)
    compat.install()
    compat.install()
    assert compat.installed()
    assert len(sys.meta_path) == len(before) + 1
    compat.uninstall()
    compat.uninstall()
    assert sys.meta_path == before
    assert not compat.installed()


def test_what_seqloom_lacks_is_not_found():
    if is_real("fla"):
        pytest.skip("the package itself is installed")
    compat.install()
    with pytest.raises(ModuleNotFoundError, match="based"):
        importlib.import_module("fla.ops.based")
    with pytest.raises(ModuleNotFoundError, match="wy_fast"):
        importlib.import_module("fla.ops.gla.wy_fast")
    from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined

    with pytest.raises(NotImplementedError, match="mamba3_siso_combined"):
        mamba3_siso_combined(1)


def run_beside(folder, code):
    paths = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    command = [sys.executable, "-c", paths + textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_real_package_keeps_what_is_not_a_kernel(tmp_path):
    """A mamba_ssm whose ops need CUDA: its modules are its own, and run on seqloom's ops."""
    package = tmp_path / "mamba_ssm"
    for name in ("", "ops", "ops/triton", "modules"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").write_text("")
    (package / "ops/selective_scan_interface.py").write_text("import selective_scan_cuda\n")
    (package / "ops/triton/layer_norm.py").write_text("import no_triton_here\n")
    (package / "modules/block.py").write_text(
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn\n"
        "from mamba_ssm.ops.triton.layer_norm import RMSNorm\n"
    )
    (tmp_path / "einops.py").write_text("")
    run_beside(
        tmp_path,
        """
        from seqloom import compat
        compat.install()
        import mamba_ssm.modules.block as block
        import mamba_ssm.ops.selective_scan_interface as interface
        from seqloom.compat.mamba_ssm.ops import selective_scan_interface as mine
        assert mamba_ssm.__file__.startswith(sys.path[0]) if (mamba_ssm := sys.modules["mamba_ssm"]) else False
        assert interface is mine and block.selective_scan_fn is mine.selective_scan_fn
        assert mine.__spec__.name == mine.__name__
        compat.uninstall()
        assert "mamba_ssm.ops.selective_scan_interface" not in sys.modules
        try:
            import mamba_ssm.ops.selective_scan_interface
        except ModuleNotFoundError as error:
            assert error.name == "selective_scan_cuda"
        else:
            raise AssertionError
        """,
    )


def test_a_real_package_that_is_loaded_goes_by_device(tmp_path):
    package = tmp_path / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text("def causal_conv1d_fn(x, weight, bias=None, **rest):\n    return 'its own'\n")
    (tmp_path / "user.py").write_text("from causal_conv1d import causal_conv1d_fn\n")
    run_beside(
        tmp_path,
        """
        import torch, causal_conv1d, user
        theirs = causal_conv1d.causal_conv1d_fn
        from seqloom import compat
        compat.install()
        x, weight = torch.randn(1, 4, 9), torch.randn(4, 3)
        for function in (causal_conv1d.causal_conv1d_fn, user.causal_conv1d_fn):
            assert function(x, weight).shape == x.shape
            assert function(x.to("meta"), weight) == "its own"
        compat.uninstall()
        assert causal_conv1d.causal_conv1d_fn is theirs and user.causal_conv1d_fn is theirs
        """,
    )


def test_example():
    pytest.importorskip("transformers")
    script = ROOT / "examples" / "huggingface_mamba.py"
    result = subprocess.run([sys.executable, script, "--tiny"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "training step" in result.stdout
    assert float(result.stdout.rsplit(maxsplit=1)[1]) < 1e-4


def test_arguments_by_name_reach_the_op():
    compat.install()
    from causal_conv1d import causal_conv1d_fn

    x, weight = torch.randn(1, 4, 9), torch.randn(4, 3)
    assert torch.equal(
        causal_conv1d_fn(x=x, weight=weight, activation="silu"),
        causal_conv1d_fn(x, weight, None, None, None, False, None, "silu"),
    )


def test_a_real_fla_goes_by_device(tmp_path):
    """Its families import each other's kernels: the modules stay, and only functions that seqloom has are replaced."""
    family = tmp_path / "fla" / "ops" / "gla"
    family.mkdir(parents=True)
    (tmp_path / "fla" / "__init__.py").write_text("")
    (tmp_path / "fla" / "ops" / "__init__.py").write_text("from fla.ops.gla import chunk_gla\n")
    (family / "__init__.py").write_text("from fla.ops.gla.chunk import chunk_gla\n")
    (family / "chunk.py").write_text(
        "def chunk_gla(q, k, v, g):\n    return 'its own'\n\n\ndef chunk_gla_fwd(q):\n    return 'its own'\n"
    )
    run_beside(
        tmp_path,
        """
        import torch
        from seqloom import compat
        from seqloom.compat import _install
        _install.NEEDS["fla"] = "json"  # as if Triton were installed
        compat.install()
        import fla.ops
        from fla.ops.gla.chunk import chunk_gla_fwd
        q = torch.rand(1, 5, 2, 4)
        for function in (fla.ops.chunk_gla, fla.ops.gla.chunk_gla, fla.ops.gla.chunk.chunk_gla):
            assert function(q, q, q, -q)[0].shape == q.shape
            assert function(*(q.to("meta"),) * 4) == "its own"
        assert chunk_gla_fwd(q) == "its own"
        held = fla.ops.chunk_gla
        compat.uninstall()
        assert held(q, q, q, -q) == "its own"
        """,
    )
