// Mamba and Mamba-2 as Hugging Face's classes spell them.
#include "huggingface/family.h"

namespace seqloom::huggingface {
namespace {

/// The keys that both have.
struct CommonConfig {
  int64_t vocab_size = 50280, hidden_size = 768, state_size = 16, num_hidden_layers = 32, expand = 2, conv_kernel = 4;
  double layer_norm_epsilon = 1e-5;
  bool use_bias = false, use_conv_bias = true, tie_word_embeddings = true;
  std::optional<int64_t> intermediate_size;

  void describe(Fields& f) {
    f.add("vocab_size", vocab_size, "tokens").at_least(1).at_most(1 << 26);
    f.add("hidden_size", hidden_size, "width").at_least(1).at_most(1 << 16);
    f.add("state_size", state_size, "state of a channel").at_least(1).at_most(1 << 12);
    f.add("num_hidden_layers", num_hidden_layers, "layers").at_least(1).at_most(1024);
    f.add("expand", expand, "inner width as a multiple of the width").at_least(1).at_most(64);
    f.add("conv_kernel", conv_kernel, "kernel of the convolution").at_least(1).at_most(1024);
    f.add("layer_norm_epsilon", layer_norm_epsilon, "of the norms").greater_than(0);
    f.add("use_bias", use_bias, "biases in the projections");
    f.add("use_conv_bias", use_conv_bias, "a bias in the convolution");
    f.add("tie_word_embeddings", tie_word_embeddings, "the output projection is the embedding");
    f.add("intermediate_size", intermediate_size, "expand x hidden_size").at_least(1);
  }

  Config mixer(const char* kind) const {
    return {{"kind", kind},     {"d_state", state_size}, {"d_conv", conv_kernel},
            {"expand", expand}, {"bias", use_bias},      {"conv_bias", use_conv_bias}};
  }
};

struct MambaConfig : CommonConfig {
  std::optional<int64_t> time_step_rank;

  void describe(Fields& f) {
    CommonConfig::describe(f);
    f.add("time_step_rank", time_step_rank, "rank of the step size; auto: hidden_size / 16").at_least(1).at_most(65536);
  }
};

struct Mamba2Config : CommonConfig {
  int64_t num_heads = 128, head_dim = 64, n_groups = 8;
  Config time_step_limit = Config::array();

  Mamba2Config() {
    vocab_size = 32768;
    hidden_size = 4096;
    state_size = 128;
    num_hidden_layers = 64;
    tie_word_embeddings = false;
  }
  void describe(Fields& f) {
    CommonConfig::describe(f);
    f.add("num_heads", num_heads, "heads").at_least(1).at_most(1 << 16);
    f.add("head_dim", head_dim, "width of a head").at_least(1).at_most(1 << 16);
    f.add("n_groups", n_groups, "groups of heads that share B and C").at_least(1).at_most(1 << 16);
    f.add("time_step_limit", time_step_limit, "bounds of the step size");
  }
};

const std::vector<std::string> kInitialOnly = {
    "time_step_scale",          "time_step_min",    "time_step_max", "time_step_floor",      "time_step_init_scheme",
    "rescale_prenorm_residual", "residual_in_fp32", "use_mambapy",   "use_associative_scan", "chunk_size"};

Description describe(const ConfigFile& file, const CommonConfig& c, const Config& mixer) {
  if (c.intermediate_size && *c.intermediate_size != c.expand * c.hidden_size) {
    reject(file, "intermediate_size", *c.intermediate_size,
           fmt::format("expected expand x hidden_size = {}", c.expand * c.hidden_size));
  }
  Description d;
  d.model = {{"width", c.hidden_size},
             {"layers", Config::array({{{"repeat", c.num_hidden_layers}, {"mixer", mixer}}})},
             {"norm", "rms"},
             {"norm_eps", c.layer_norm_epsilon},
             {"tied", c.tie_word_embeddings}};
  d.vocabulary = c.vocab_size;
  d.context = 2048;
  d.sizes = {{"backbone.embeddings.weight", {c.vocab_size, c.hidden_size}},
             {"backbone.layers.0.mixer.out_proj.weight", {c.hidden_size, c.expand * c.hidden_size}}};
  return d;
}

Description read_mamba(ConfigFile& file) {
  expect_values(file, {{"hidden_act", "silu"}});
  if (file.values.value("time_step_rank", Config()) == "auto") file.values.erase("time_step_rank");
  const auto c = read_config<MambaConfig>(file, kInitialOnly);
  Config mixer = c.mixer("mamba");
  if (c.time_step_rank) mixer["dt_rank"] = *c.time_step_rank;
  return describe(file, c, mixer);
}

/// [low, high]; a high that is infinite, written as a table since JSON has no such number, is left out.
Config step_limit(const ConfigFile& file, const Config& value) {
  if (value.empty()) return Config::array({0});
  const bool pair = value.is_array() && value.size() == 2 && value[0].is_number();
  if (pair && value[1].is_object() && value[1].value("__float__", "") == "Infinity") return Config::array({value[0]});
  if (!pair || !value[1].is_number()) reject(file, "time_step_limit", value, "expected two numbers");
  return value;
}

Description read_mamba2(ConfigFile& file) {
  expect_values(file, {{"hidden_act", "silu"}, {"norm_before_gate", false}, {"rms_norm", true}});
  auto idle = kInitialOnly;
  idle.push_back("time_step_rank");
  const auto c = read_config<Mamba2Config>(file, idle);
  if (c.num_heads * c.head_dim != c.expand * c.hidden_size) {
    reject(file, "num_heads", c.num_heads,
           fmt::format("num_heads x head_dim must be expand x hidden_size = {}", c.expand * c.hidden_size));
  }
  Config mixer = c.mixer("mamba2");
  mixer.update({{"headdim", c.head_dim},
                {"ngroups", c.n_groups},
                {"norm_eps", c.layer_norm_epsilon},
                {"dt_limit", step_limit(file, c.time_step_limit)}});
  return describe(file, c, mixer);
}

Config write_common(const ModelTable& m, const char* type, const char* architecture) {
  const Config& mixer = m.mixer();
  return {{"model_type", type},
          {"architectures", {architecture}},
          {"hidden_act", "silu"},
          {"residual_in_fp32", true},
          {"vocab_size", m.size("embedding.weight", 0)},
          {"hidden_size", m.options.at("width")},
          {"state_size", mixer.at("d_state")},
          {"num_hidden_layers", m.layers()},
          {"expand", mixer.at("expand")},
          {"conv_kernel", mixer.at("d_conv")},
          {"layer_norm_epsilon", m.options.at("norm_eps")},
          {"use_bias", mixer.at("bias")},
          {"use_conv_bias", mixer.at("conv_bias")},
          {"tie_word_embeddings", m.options.at("tied")},
          {"time_step_min", mixer.at("dt_min")},
          {"time_step_max", mixer.at("dt_max")},
          {"time_step_floor", mixer.at("dt_init_floor")}};
}

Config write_mamba(const ModelTable& m) {
  Config config = write_common(m, "mamba", "MambaForCausalLM");
  config["time_step_rank"] = m.size("layers.0.mixer.dt_proj.weight", 1);
  config["time_step_scale"] = m.mixer().at("dt_scale");
  return config;
}

Config write_mamba2(const ModelTable& m) {
  Config config = write_common(m, "mamba2", "Mamba2ForCausalLM");
  config["head_dim"] = m.mixer().at("headdim");
  config["num_heads"] = m.size("layers.0.mixer.A_log", 0);
  config["n_groups"] = m.mixer().at("ngroups");
  config["chunk_size"] = m.mixer().at("chunk_size");
  Config limit = m.mixer().at("dt_limit");
  if (limit.size() == 1) limit.push_back({{"__float__", "Infinity"}});
  config["time_step_limit"] = limit;
  return config;
}

std::string spelling(const std::string& name) {
  if (name == "lm_head.weight") return name;
  const std::string full = prefixed(name, "backbone.");
  return full == "backbone.embedding.weight" ? "backbone.embeddings.weight" : full;
}

Family family(const std::string& kind, const std::string& about, Description (*read)(ConfigFile&),
              Config (*write)(const ModelTable&)) {
  return {.about = about,
          .task_kind = "language",
          .mixer = kind,
          .channels = {"none"},
          .owns = has_model_type(kind),
          .read = read,
          .names = {{"backbone.embeddings.weight", {"embedding.weight"}},
                    {"backbone.layers.#.norm.*", {"layers.#.mixer_norm.*"}},
                    {"backbone.layers.#.mixer.*", {"layers.#.mixer.*"}},
                    {"backbone.norm_f.*", {"final_norm.*"}},
                    {"lm_head.weight", {"head.weight"}}},
          .spelling = spelling,
          .write = write};
}

[[maybe_unused]] const bool registered =
    families().add("mamba",
                   family("mamba", "Mamba, transformers' spelling (arXiv 2312.00752)", read_mamba, write_mamba)) &&
    families().add("mamba2",
                   family("mamba2", "Mamba-2, transformers' spelling (arXiv 2405.21060)", read_mamba2, write_mamba2));

}  // namespace
}  // namespace seqloom::huggingface
