#include "huggingface/family.h"

namespace seqloom::huggingface {
namespace {

struct Gpt2Config {
  int64_t vocab_size = 50257, n_positions = 1024, n_embd = 768, n_layer = 12, n_head = 12;
  std::optional<int64_t> n_inner;
  std::string activation_function = "gelu_new";
  double layer_norm_epsilon = 1e-5;
  bool tie_word_embeddings = true;

  void describe(Fields& f) {
    f.add("vocab_size", vocab_size, "tokens").at_least(1).at_most(1 << 26);
    f.add("n_positions", n_positions, "longest text").at_least(1).at_most(1 << 24);
    f.add("n_embd", n_embd, "width").at_least(1).at_most(1 << 16);
    f.add("n_layer", n_layer, "layers").at_least(1).at_most(1024);
    f.add("n_head", n_head, "heads").at_least(1).at_most(1 << 12);
    f.add("n_inner", n_inner, "hidden width; none: 4 n_embd").at_least(1).at_most(1 << 20);
    f.add("activation_function", activation_function, "of the MLP");
    f.add("layer_norm_epsilon", layer_norm_epsilon, "of the norms").greater_than(0);
    f.add("tie_word_embeddings", tie_word_embeddings, "the output projection is the embedding");
  }
};

Description read(ConfigFile& file) {
  expect_values(file, {{"scale_attn_weights", true}, {"scale_attn_by_inverse_layer_idx", false}});
  const auto c = read_config<Gpt2Config>(
      file, {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
             "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx"});
  const int64_t inner = c.n_inner.value_or(4 * c.n_embd);
  const Config layer = {{"repeat", c.n_layer},
                        {"mixer", {{"kind", "attention"}, {"heads", c.n_head}, {"qkv_bias", true}, {"o_bias", true}}},
                        {"channel",
                         {{"kind", "mlp"},
                          {"hidden", inner},
                          {"activation", activation_of(file, "activation_function", c.activation_function)}}}};
  Description d;
  d.model = {{"width", c.n_embd},
             {"layers", Config::array({layer})},
             {"norm", "layer"},
             {"norm_eps", c.layer_norm_epsilon},
             {"position", "learned"},
             {"max_length", c.n_positions},
             {"tied", c.tie_word_embeddings}};
  d.vocabulary = c.vocab_size;
  d.context = c.n_positions;
  d.sizes = {{"transformer.wte.weight", {c.vocab_size, c.n_embd}},
             {"transformer.wpe.weight", {c.n_positions, c.n_embd}},
             {"transformer.h.0.mlp.c_fc.weight", {c.n_embd, inner}}};
  return d;
}

Config write(const ModelTable& m) {
  return {{"model_type", "gpt2"},
          {"architectures", {"GPT2LMHeadModel"}},
          {"vocab_size", m.size("embedding.weight", 0)},
          {"n_positions", m.options.at("max_length")},
          {"n_embd", m.options.at("width")},
          {"n_layer", m.layers()},
          {"n_head", m.mixer().at("heads")},
          {"n_inner", m.size("layers.0.channel.fc1.weight", 0)},
          {"activation_function", activation_name(m.channel().at("activation"))},
          {"layer_norm_epsilon", m.options.at("norm_eps")},
          {"tie_word_embeddings", m.options.at("tied")}};
}

std::string spelling(const std::string& name) {
  if (ends_in(name, {".attn.bias", ".attn.masked_bias"})) return "";  // masks that old files carry
  return name == "lm_head.weight" ? name : prefixed(name, "transformer.");
}

[[maybe_unused]] const bool registered = families().add(
    "gpt2", {.about = "GPT-2 (Radford et al. 2019)",
             .task_kind = "language",
             .mixer = "attention",
             .channels = {"mlp"},
             .owns = has_model_type("gpt2"),
             .read = read,
             .names = {{"transformer.wte.weight", {"embedding.weight"}},
                       {"transformer.wpe.weight", {"position.weight"}},
                       {"transformer.h.#.ln_1.*", {"layers.#.mixer_norm.*"}},
                       {"transformer.h.#.attn.c_attn.*",
                        {"layers.#.mixer.q_proj.*", "layers.#.mixer.k_proj.*", "layers.#.mixer.v_proj.*"},
                        /*transposed=*/true},
                       {"transformer.h.#.attn.c_proj.*", {"layers.#.mixer.o_proj.*"}, true},
                       {"transformer.h.#.ln_2.*", {"layers.#.channel_norm.*"}},
                       {"transformer.h.#.mlp.c_fc.*", {"layers.#.channel.fc1.*"}, true},
                       {"transformer.h.#.mlp.c_proj.*", {"layers.#.channel.fc2.*"}, true},
                       {"transformer.ln_f.*", {"final_norm.*"}},
                       {"lm_head.weight", {"head.weight"}}},
             .spelling = spelling,
             .write = write});

}  // namespace
}  // namespace seqloom::huggingface
