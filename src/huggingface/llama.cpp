// Llama, Qwen2 and Qwen3 are one stack with different biases, norms and windows.
#include "huggingface/family.h"

namespace seqloom::huggingface {
namespace {

struct LlamaConfig {
  int64_t vocab_size = 32000, hidden_size = 4096, intermediate_size = 11008, num_hidden_layers = 32;
  int64_t num_attention_heads = 32, max_position_embeddings = 2048;
  std::optional<int64_t> num_key_value_heads, head_dim, sliding_window;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false, attention_bias = false, mlp_bias = false, use_sliding_window = false;
  int64_t max_window_layers = 28;
  Config layer_types = Config::array();

  void describe(Fields& f) {
    f.add("vocab_size", vocab_size, "tokens").at_least(1).at_most(1 << 26);
    f.add("hidden_size", hidden_size, "width").at_least(1).at_most(1 << 16);
    f.add("intermediate_size", intermediate_size, "hidden width").at_least(1).at_most(1 << 20);
    f.add("num_hidden_layers", num_hidden_layers, "layers").at_least(1).at_most(1024);
    f.add("num_attention_heads", num_attention_heads, "query heads").at_least(1).at_most(1 << 12);
    f.add("num_key_value_heads", num_key_value_heads, "key heads; none: as many").at_least(1).at_most(1 << 12);
    f.add("head_dim", head_dim, "width of a head; none: hidden_size / heads").at_least(1).at_most(1 << 14);
    f.add("max_position_embeddings", max_position_embeddings, "longest text").at_least(1).at_most(1LL << 40);
    f.add("rms_norm_eps", rms_norm_eps, "of the norms").greater_than(0);
    f.add("tie_word_embeddings", tie_word_embeddings, "the output projection is the embedding");
    f.add("attention_bias", attention_bias, "biases in q, k, v and o");
    f.add("mlp_bias", mlp_bias, "biases in the MLP");
    f.add("use_sliding_window", use_sliding_window, "upper layers see a window only");
    f.add("sliding_window", sliding_window, "tokens that these see").at_least(1).at_most(1 << 30);
    f.add("max_window_layers", max_window_layers, "the first of these layers").at_least(0);
    f.add("layer_types", layer_types, "full_attention or sliding_attention, of each layer");
  }
};

/// What tells the three apart.
struct Kind {
  const char *model_type, *architecture;
  bool qkv_bias_always, biases, qk_norm, windows;
};
constexpr Kind kLlama = {"llama", "LlamaForCausalLM", false, true, false, false};
constexpr Kind kQwen2 = {"qwen2", "Qwen2ForCausalLM", true, false, false, true};
constexpr Kind kQwen3 = {"qwen3", "Qwen3ForCausalLM", false, true, true, true};

/// Whether each layer has the window.
std::vector<bool> windowed(const ConfigFile& file, const LlamaConfig& c) {
  const auto count = static_cast<size_t>(c.num_hidden_layers);
  std::vector<bool> layers(count);
  const bool on = c.use_sliding_window && c.sliding_window;
  for (size_t i = 0; i < count; ++i) layers[i] = on && static_cast<int64_t>(i) >= c.max_window_layers;
  if (c.layer_types.empty()) return layers;
  if (!c.layer_types.is_array() || c.layer_types.size() != count) {
    reject(file, "layer_types", c.layer_types, fmt::format("expected a list of {} layers", count));
  }
  for (size_t i = 0; i < count; ++i) {
    if (c.layer_types[i] != "full_attention" && (c.layer_types[i] != "sliding_attention" || !on)) {
      reject(file, fmt::format("layer_types[{}]", i), c.layer_types[i],
             "expected full_attention, or sliding_attention with use_sliding_window and sliding_window");
    }
    layers[i] = c.layer_types[i] == "sliding_attention";
  }
  return layers;
}

Description read(ConfigFile& file, const Kind& kind) {
  expect_values(file, {{"hidden_act", "silu"}});
  if (!kind.biases) expect_values(file, {{"attention_bias", kind.qkv_bias_always}});
  if (!kind.windows) expect_values(file, {{"use_sliding_window", false}, {"sliding_window", nullptr}});
  if (kind.qk_norm) expect_values(file, {{"mlp_bias", false}});
  const Config rope = take_rope(file);
  const auto c = read_config<LlamaConfig>(file);
  const int64_t head = c.head_dim.value_or(kind.qk_norm ? 128 : c.hidden_size / c.num_attention_heads);
  Config mixer = {{"kind", "attention"},
                  {"heads", c.num_attention_heads},
                  {"kv_heads", c.num_key_value_heads.value_or(c.num_attention_heads)},
                  {"head_dim", head},
                  {"position", "rope"},
                  {"qkv_bias", kind.qkv_bias_always || c.attention_bias},
                  {"o_bias", c.attention_bias}};
  mixer.update(rope);
  if (kind.qk_norm) mixer.update({{"qk_norm", true}, {"qk_norm_eps", c.rms_norm_eps}});
  const Config channel = {{"kind", "swiglu"}, {"hidden", c.intermediate_size}, {"bias", c.mlp_bias}};
  std::vector<Config> layers;
  for (const bool has_window : windowed(file, c)) {
    layers.push_back({{"mixer", mixer}, {"channel", channel}});
    if (has_window) layers.back()["mixer"]["window"] = *c.sliding_window;
  }
  Description d;
  d.model = {{"width", c.hidden_size},
             {"layers", layer_list(layers)},
             {"norm", "rms"},
             {"norm_eps", c.rms_norm_eps},
             {"tied", c.tie_word_embeddings}};
  d.vocabulary = c.vocab_size;
  d.context = c.max_position_embeddings;
  d.sizes = {{"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}},
             {"model.layers.0.mlp.up_proj.weight", {c.intermediate_size, c.hidden_size}},
             {"model.layers.0.self_attn.q_proj.weight", {c.num_attention_heads * head, c.hidden_size}}};
  return d;
}

/// The keys of windows, which layers of one width have or have not.
void write_windows(const ModelTable& m, Config& config) {
  Config types = Config::array(), window;
  for (const auto& mixer : m.mixers) {
    const bool has_window = mixer.at("window").is_number();
    types.push_back(has_window ? "sliding_attention" : "full_attention");
    if (has_window) window = mixer.at("window");
  }
  config["layer_types"] = types;
  config["use_sliding_window"] = !window.is_null();
  config["sliding_window"] = window;
}

Config write(const ModelTable& m, const Kind& kind) {
  const Config& mixer = m.mixer();
  const int64_t heads = mixer.at("heads"), head = m.size("layers.0.mixer.q_proj.weight", 0) / heads;
  Config config = {{"model_type", kind.model_type},
                   {"architectures", {kind.architecture}},
                   {"hidden_act", "silu"},
                   {"vocab_size", m.size("embedding.weight", 0)},
                   {"hidden_size", m.options.at("width")},
                   {"intermediate_size", m.size("layers.0.channel.up_proj.weight", 0)},
                   {"num_hidden_layers", m.layers()},
                   {"num_attention_heads", heads},
                   {"num_key_value_heads", m.size("layers.0.mixer.k_proj.weight", 0) / head},
                   {"head_dim", head},
                   {"max_position_embeddings", m.task.value("context", 2048)},
                   {"rms_norm_eps", m.options.at("norm_eps")},
                   {"tie_word_embeddings", m.options.at("tied")},
                   {"rope_parameters", rope_parameters(mixer)}};
  if (kind.biases) config["attention_bias"] = mixer.at("o_bias");
  if (kind.biases && !kind.qk_norm) config["mlp_bias"] = m.channel().at("bias");
  if (kind.windows) write_windows(m, config);
  return config;
}

std::string spelling(const std::string& name) {
  if (ends_in(name, {"rotary_emb.inv_freq"})) return "";
  return name == "lm_head.weight" ? name : prefixed(name, "model.");
}

Family family(const Kind& kind, const std::string& about) {
  return {.about = about,
          .task_kind = "language",
          .mixer = "attention",
          .channels = {"swiglu"},
          .owns = has_model_type(kind.model_type),
          .read = [kind](ConfigFile& file) { return read(file, kind); },
          .names = {{"model.embed_tokens.weight", {"embedding.weight"}},
                    {"model.layers.#.input_layernorm.*", {"layers.#.mixer_norm.*"}},
                    {"model.layers.#.self_attn.*", {"layers.#.mixer.*"}},
                    {"model.layers.#.post_attention_layernorm.*", {"layers.#.channel_norm.*"}},
                    {"model.layers.#.mlp.*", {"layers.#.channel.*"}},
                    {"model.norm.*", {"final_norm.*"}},
                    {"lm_head.weight", {"head.weight"}}},
          .spelling = spelling,
          .write = [kind](const ModelTable& table) { return write(table, kind); }};
}

[[maybe_unused]] const bool registered =
    families().add("llama", family(kLlama, "Llama 2 and 3 (Touvron et al. 2023)")) &&
    families().add("qwen2", family(kQwen2, "Qwen2 and Qwen2.5 (arXiv 2407.10671)")) &&
    families().add("qwen3", family(kQwen3, "Qwen3, dense (arXiv 2505.09388)"));

}  // namespace
}  // namespace seqloom::huggingface
