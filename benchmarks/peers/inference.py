"""Reading a prompt and decoding one row with GPT-2 small's and Mamba-130M's bodies: transformers and llama.cpp.

    python benchmarks/peers/inference.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

Random float32 weights, a vocabulary of bytes. seqloom's figures are those of `seqloom bench`, a process of its own.
"""
import statistics
import tempfile

import torch
from common import HERE, begin, clock, finish, peer, seqloom_bench, table

import models

PROMPT = 128


class Transformers:
    def __init__(self, model, options):
        self.model, self.options = model.eval(), options
        self.ids = torch.randint(models.VOCABULARY, (1, PROMPT))

    def generate(self, tokens):
        now = clock(self.options.threads)
        start = now()
        self.model.generate(self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=tokens,
                            min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return now() - start

    def rates(self):
        """Tokens/s of reading the prompt and of decoding."""
        prompt = self.generate(1)
        more = self.generate(1 + self.options.decode) - prompt
        return PROMPT / prompt, self.options.decode / more


class LlamaCpp:
    def __init__(self, llama_cpp, path, options):
        self.options = options
        self.model = llama_cpp.Llama(path, n_ctx=1024, n_batch=PROMPT, n_threads=options.threads,
                                     n_threads_batch=options.threads, verbose=False)
        self.ids = torch.randint(models.VOCABULARY, (PROMPT,)).tolist()

    def seconds(self, runs):
        now = clock(self.options.threads)
        start = now()
        for ids in runs:
            self.model.eval(ids)
        return now() - start

    def rates(self):
        self.model.reset()
        prompt = self.seconds([self.ids])
        return PROMPT / prompt, self.options.decode / self.seconds([[1]] * self.options.decode)


def seqloom_rates(options, recipe, layers):
    shape = ("--set", "model.width=768", "--set", f"model.layers.0.repeat={layers}")
    result = seqloom_bench(options, HERE / recipe, *shape, "--lengths", PROMPT, "--only", "prefill,decode", "--decode",
                           options.decode, "--repeats", 1)
    row = result["rows"][0]
    return row["prefill_tokens_per_second"], row["decode_tokens_per_second"]


def compare(rows, options, name, run, recipe, layers):
    turns = [(run(), seqloom_rates(options, recipe, layers)) for _ in range(options.pairs + 1)][1:]  # one warms up
    for i, what in enumerate((f"prompt of {PROMPT}", "decoding")):
        theirs, ours = (statistics.median(turn[side][i] for turn in turns) for side in (0, 1))
        ratio = statistics.median(turn[1][i] / turn[0][i] for turn in turns)
        rows.add(recipe[:-5], what, name, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.2f}")


def write_gpt(gguf, path, width=768, layers=12, weights="F32"):
    """A GGUF file of GPT-2's shape with random weights and no vocabulary; matrices of products as `weights` says."""
    writer = gguf.GGUFWriter(path, "gpt2")
    describe(writer, width, layers)
    writer.add_head_count(width // 64)
    writer.add_feed_forward_length(4 * width)
    writer.add_layer_norm_eps(1e-5)
    shapes = {"token_embd.weight": (models.VOCABULARY, width), "position_embd.weight": (1024, width)}
    products = {"attn_qkv": (3 * width, width), "attn_output": (width, width), "ffn_up": (4 * width, width),
                "ffn_down": (width, 4 * width)}
    for i in range(layers):
        for name, shape in products.items():
            shapes[f"blk.{i}.{name}.weight"], shapes[f"blk.{i}.{name}.bias"] = shape, shape[:1]
    for norm in ["output_norm", *(f"blk.{i}.{name}" for i in range(layers) for name in ("attn_norm", "ffn_norm"))]:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    write_tensors(gguf, writer, shapes, weights)


def write_mamba(gguf, path, width=768, layers=24, weights="F32"):
    """The same of Mamba's: inner width 2 D, 16 states, convolutions of 4, step sizes from D / 16 channels."""
    inner, rank, states = 2 * width, width // 16, 16
    writer = gguf.GGUFWriter(path, "mamba")
    describe(writer, width, layers)
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(states)
    writer.add_ssm_time_step_rank(rank)
    shapes = {"token_embd.weight": (models.VOCABULARY, width), "output_norm.weight": (width,)}
    layer = {"attn_norm.weight": (width,), "ssm_in.weight": (2 * inner, width), "ssm_conv1d.weight": (inner, 4),
             "ssm_conv1d.bias": (inner,), "ssm_x.weight": (rank + 2 * states, inner), "ssm_dt.weight": (inner, rank),
             "ssm_dt.bias": (inner,), "ssm_a": (inner, states), "ssm_d": (inner,), "ssm_out.weight": (width, inner)}
    shapes.update({f"blk.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()})
    write_tensors(gguf, writer, shapes, weights)


def describe(writer, width, layers):
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(models.VOCABULARY)


MATRICES = ("token_embd", "attn_qkv", "attn_output", "ffn_up", "ffn_down", "ssm_in", "ssm_x", "ssm_out")


def write_tensors(gguf, writer, shapes, weights):
    form = gguf.GGMLQuantizationType[weights]
    for name, shape in shapes.items():
        random = 0.02 * torch.randn(shape)
        values = (-random.abs() if name.endswith("ssm_a") else random).numpy()
        if weights != "F32" and name.endswith(".weight") and name.split(".")[-2] in MATRICES:
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    options = begin(__doc__)
    options.decode = 16 if options.quick else 64
    rows = table("Tokens/s, B = 1, float32", "model", "what", "peer", "peer tokens/s", "seqloom tokens/s", "ratio")
    transformers, llama_cpp, gguf = peer("transformers"), peer("llama_cpp", "llama-cpp-python"), peer("gguf")
    shapes = (("gpt.toml", 12, models.transformers_gpt, write_gpt),
              ("mamba.toml", 24, models.transformers_mamba, write_mamba))
    for recipe, layers, model, write in shapes:
        if transformers:
            transformers.logging.set_verbosity_error()
            with torch.inference_mode():
                run = Transformers(model(transformers, 768, layers), options).rates
                compare(rows, options, "transformers", run, recipe, layers)
        if llama_cpp and gguf:
            with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
                write(gguf, file.name)
                compare(rows, options, "llama.cpp", LlamaCpp(llama_cpp, file.name, options).rates, recipe, layers)
    finish(options)


if __name__ == "__main__":
    main()
