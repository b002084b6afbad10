"""seqloom.nn: every mixer of the registry as a torch module, and decoders."""

import copy
import inspect
import io

import pytest
import torch

import seqloom
from seqloom import nn
from seqloom.nn import _stubs

D = 24


def trials():
    for kind, entry in nn.REGISTRY.items():
        for i, options in enumerate(entry["trials"]):
            yield pytest.param(kind, options, id=f"{kind}-{i}")


every_trial = pytest.mark.parametrize(("kind", "options"), list(trials()))
every_kind = pytest.mark.parametrize("kind", list(nn.REGISTRY))


def make(kind: str, options: dict | None = None) -> nn.Mixer:
    torch.manual_seed(0)
    if options is None:
        options = nn.REGISTRY[kind]["trials"][0]
    return nn.Mixer(kind, D, **options).eval()


def handed_on(mixer: nn.Mixer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(x) for name in mixer.takes}


@every_trial
def test_step_gives_what_forward_gives(kind, options):
    mixer, x = make(kind, options), torch.randn(2, 7, D)
    values = handed_on(mixer, x)
    with torch.no_grad():
        wanted = mixer(x, values=dict(values))
        if not mixer.causal:
            with pytest.raises(RuntimeError, match="bidirectional"):
                mixer.empty_memory(2)
            return
        memory = mixer.empty_memory(2)
        first = {name: value[:, :4] for name, value in values.items()}
        found = [mixer.step(x[:, :4], memory, first)]
        for t in range(4, 7):
            found.append(mixer.step(x[:, t], memory, {k: v[:, t : t + 1] for k, v in values.items()}).unsqueeze(1))
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=2e-4, rtol=2e-4)
    assert memory.tokens == 7


@every_kind
def test_gradients_reach_every_parameter_and_an_optimiser_moves_them(kind):
    mixer, x = make(kind).train(), torch.randn(2, 6, D)
    values = handed_on(mixer, x)
    before = {name: parameter.detach().clone() for name, parameter in mixer.named_parameters()}
    y = mixer(x, values=dict(values))
    (y.square().mean() + sum(loss.sum() for loss in mixer.losses)).backward()
    moved = {name for name, parameter in mixer.named_parameters() if parameter.grad is not None}
    assert moved, "no parameter has a gradient"
    torch.optim.SGD(mixer.parameters(), lr=0.1).step()
    mixer.after_step()
    for name, parameter in mixer.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter)
        changes = name in moved and parameter.grad.abs().max() > 1e-6
        if changes:
            assert not torch.equal(parameter, before[name]), name
    assert not torch.equal(mixer(x, values=dict(values)), y)


@every_kind
def test_copies_are_equal_and_independent(kind):
    mixer, x = make(kind), torch.randn(2, 6, D)
    values = handed_on(mixer, x)
    wanted = mixer(x, values=dict(values))
    file = io.BytesIO()
    torch.save(mixer, file)
    file.seek(0)
    state = torch.get_rng_state()
    copies = [copy.deepcopy(mixer), torch.load(file, weights_only=False)]
    assert torch.equal(torch.get_rng_state(), state)
    fresh = make(kind)
    fresh.load_state_dict(mixer.state_dict())
    for other in [*copies, fresh]:
        assert torch.equal(other(x, values=dict(values)), wanted)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
    assert torch.equal(mixer(x, values=dict(values)), wanted)


@every_kind
def test_double_precision_gradcheck(kind):
    mixer = make(kind).double()
    x = torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True)
    values = handed_on(mixer, x.detach())
    assert all(tensor.dtype == torch.float64 for tensor in mixer.parameters())
    assert torch.autograd.gradcheck(lambda x: mixer(x, values=dict(values)), (x,), fast_mode=True, atol=1e-3, rtol=1e-2)


@every_kind
def test_padding_changes_nothing(kind):
    mixer, x = make(kind), torch.randn(2, 6, D)
    values = handed_on(mixer, x)
    padded = mixer(x, torch.tensor([6, 4]), dict(values))
    alone = mixer(x[1:, :4], values={name: value[1:, :4] for name, value in values.items()})
    torch.testing.assert_close(padded[1:, :4], alone, atol=2e-4, rtol=2e-4)


@every_kind
def test_classes_describe_themselves(kind):
    cls = nn._mixers.CLASSES[nn._mixers.class_name(kind)]
    assert getattr(nn, cls.__name__) is cls
    options = {option["name"] for option in nn.REGISTRY[kind]["options"]}
    assert set(inspect.signature(cls).parameters) == {"d_model", *options}
    assert all(name in cls.__doc__ for name in options)
    chosen = nn.REGISTRY[kind]["trials"][0]
    assert set(cls(D, **chosen).state_dict()) == set(make(kind).state_dict())


def test_stubs_are_those_of_the_registry():
    assert _stubs.FILE.read_text() == _stubs.text(), "run python -m seqloom.nn._stubs"


def test_wrong_options_say_what_is_right():
    with pytest.raises(ValueError, match="did you mean 'd_state'"):
        nn.Mamba(D, d_stat=16)
    with pytest.raises(ValueError, match="did you mean 'mamba'"):
        nn.Mixer("mambo", D)
    with pytest.raises(RuntimeError, match=r"expected \[B, T, 24\]"):
        nn.Mamba(D)(torch.randn(2, 3, 8))


def test_a_replaced_parameter_is_refused_or_taken_over():
    mixer, x = make("gla"), torch.randn(1, 4, D)
    state = {name: torch.zeros_like(tensor) for name, tensor in mixer.state_dict().items()}
    optimised = list(mixer.parameters())
    mixer.load_state_dict(state, assign=True)
    assert all(a is b for a, b in zip(mixer.parameters(), optimised, strict=True))
    assert mixer(x).abs().max() == 0
    mixer.q_proj.weight = torch.nn.Parameter(torch.ones_like(mixer.q_proj.weight))
    with pytest.raises(RuntimeError, match=r"q_proj.weight was replaced"):
        mixer(x)


def test_modules_move_types_and_nest():
    x = torch.randn(1, 4, D)
    net = torch.nn.Sequential(torch.nn.Linear(D, D), nn.Longvq(D))
    before = list(net.parameters())
    net.to(torch.bfloat16)
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))
    assert net(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make("mamba")(x).isfinite().all()


def test_memory_is_a_value(tmp_path):
    mixer = make("mamba")
    with torch.no_grad():
        memory = mixer.empty_memory(3)
        mixer.step(torch.randn(3, 5, D), memory)
        fork = memory.clone()
        memory.save(tmp_path / "memory.safetensors")
        loaded = mixer.empty_memory(3).load(tmp_path / "memory.safetensors")
        x = torch.randn(3, D)
        wanted = mixer.step(x, memory)
        assert torch.equal(mixer.step(x, fork), wanted)
        assert torch.equal(mixer.step(x, loaded), wanted)
        rows = memory.select_rows([2, 0])
        again = torch.randn(3, D)
        torch.testing.assert_close(mixer.step(again[[2, 0]], rows), mixer.step(again, memory)[[2, 0]])
    assert memory.tokens == 7 and memory.bytes > 0
    assert all(tensor.shape[0] == 3 for tensor in memory.tensors.values())
    with pytest.raises(RuntimeError, match=r"memory.safetensors"):
        make("gla").empty_memory(3).load(tmp_path / "memory.safetensors")


TABLE = {"width": D, "layers": [{"mixer": {"kind": "mamba"}}, {"mixer": {"kind": "attention", "heads": 2}}]}


def test_decoder_trains_streams_and_round_trips(tmp_path):
    torch.manual_seed(0)
    decoder = nn.Decoder(TABLE)
    ids = torch.randint(0, 256, (2, 9))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        hidden = decoder.hidden(ids[:, :-1]).flatten(0, 1)
        loss = torch.ops.seqloom.linear_cross_entropy(hidden, decoder.output_weight, ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    decoder.eval()
    with torch.no_grad():
        wanted = decoder(ids)
        memory = decoder.empty_memory(2)
        steps = torch.cat([decoder.step(ids[:, :5], memory), decoder.step(ids[:, 5], memory).unsqueeze(1)], 1)
        torch.testing.assert_close(steps, wanted[:, :6], atol=1e-4, rtol=1e-4)

        decoder.training_step = 8
        seqloom.save_checkpoint(tmp_path / "run", decoder)
        loaded = seqloom.load_checkpoint(tmp_path / "run")
        assert torch.equal(loaded(ids), wanted)
        assert torch.equal(copy.deepcopy(loaded)(ids), wanted)
    assert loaded.training_step == 8 and loaded.recipe == decoder.recipe and not loaded.training
    assert set(loaded.state_dict()) == set(decoder.state_dict())
    mixer = nn.Mamba(D)
    part = {k.removeprefix("layers.0.mixer."): v for k, v in loaded.state_dict().items() if "layers.0.mixer." in k}
    mixer.load_state_dict(part)


def test_checkpoint_files_are_checked(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RuntimeError, match=r"broken.safetensors"):
        seqloom.load_checkpoint(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"name a tokenizer\.json"):
        seqloom.save_checkpoint(tmp_path / "run", nn.Decoder(TABLE, vocabulary=300))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mixer"):
        nn.Decoder({"layers": [{"mixer": {"kind": "nothing"}}]})
