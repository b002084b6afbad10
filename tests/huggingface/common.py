"""What the tests of checkpoints share: the binary, small tokenizers, random models that transformers saved."""
import json
import pathlib
import subprocess
import sys

SKIPPED = 77

try:
    import torch
    import transformers
    from safetensors.torch import load_file
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
except ImportError as error:
    print(f"skipped: {error}. Install: .venv/bin/pip install -r tests/requirements.txt")
    sys.exit(SKIPPED)

BINARY = pathlib.Path(sys.argv[1])
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
CHARACTERS = [chr(c) for c in range(33, 127)] + ["\u0120"]  # the last is a space in byte-level BPE
MERGES = [("t", "h"), ("th", "e"), ("\u0120", "a"), ("i", "n")]
TEXT = "the cat in a hat (and 12 others) said: ain't that the thing? In the end... a thin theme."


def seqloom(*arguments, status=0, text=None):
    """Runs a command; what it printed, or its error where another status is expected."""
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, input=text)
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stderr}"
    return done.stdout if status == 0 else done.stderr


def save_tokenizer(folder, bos=False):
    """Byte-level BPE over printable ASCII, 100 tokens, with a beginning-of-text token where asked."""
    tokens = ["<s>"] + CHARACTERS + ["".join(pair) for pair in MERGES]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def shaken(model):
    """Random enough that every parameter matters: norms, biases and states are not left at ones and zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() < 2 else 0.05))
    return model.eval()


def seqloom_logits(run, folder, vocabulary):
    """Logits of the tokens of TEXT but the last, and the ids."""
    path = folder / "text.txt"
    path.write_text(TEXT)
    out = folder / "logits.safetensors"
    said = json.loads(seqloom("eval", run, "--data", path, "--context", 1000, "--logits", out, "--json"))
    logits = load_file(out)["logits"]
    assert logits.shape == (said["tokens"], vocabulary), logits.shape
    return logits, said


def largest(a, b):
    return (a - b).abs().max().item()
