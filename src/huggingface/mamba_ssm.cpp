// Mamba and Mamba-2 as their authors' repositories (state-spaces/mamba-130m ...) spell them.
#include "huggingface/family.h"

namespace seqloom::huggingface {
namespace {

constexpr int64_t kMlpMultiple = 128;  // the hidden width of a layer's MLP is rounded up to it

struct MambaSsmConfig {
  int64_t d_model = 2560, n_layer = 64, vocab_size = 50277, d_intermediate = 0, pad_vocab_size_multiple = 8;
  bool rms_norm = true, tie_embeddings = true;
  double norm_epsilon = 1e-5;
  Config ssm_cfg = Config::object(), attn_layer_idx = Config::array();

  void describe(Fields& f) {
    f.add("d_model", d_model, "width").at_least(1).at_most(1 << 16);
    f.add("n_layer", n_layer, "layers").at_least(1).at_most(1024);
    f.add("vocab_size", vocab_size, "tokens").at_least(1).at_most(1 << 26);
    f.add("d_intermediate", d_intermediate, "hidden width of an MLP after each mixer; 0: none")
        .at_least(0)
        .at_most(1 << 20);
    f.add("pad_vocab_size_multiple", pad_vocab_size_multiple, "the embedding's rows are rounded up to it")
        .at_least(1)
        .at_most(1 << 20);
    f.add("rms_norm", rms_norm, "RMSNorm, else LayerNorm");
    f.add("tie_embeddings", tie_embeddings, "the output projection is the embedding");
    f.add("norm_epsilon", norm_epsilon, "of the norms").greater_than(0);
    f.add("ssm_cfg", ssm_cfg, "the mixer's options");
    f.add("attn_layer_idx", attn_layer_idx, "layers of attention");
  }
};

int64_t rounded_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

/// The mixer's own keys are ours. Those that are only read at the start, or choose among kernels, go.
Config mixer_of(const ConfigFile& file, const Config& ssm) {
  const std::string layer = ssm.value("layer", Config("Mamba1")).is_string() ? ssm.value("layer", "Mamba1") : "";
  if (layer != "Mamba1" && layer != "Mamba2") {
    reject(file, "ssm_cfg.layer", ssm.at("layer"), "expected Mamba1 or Mamba2");
  }
  Config mixer = {{"kind", layer == "Mamba1" ? "mamba" : "mamba2"}};
  for (const auto& [key, value] : ssm.items()) {
    const bool idle =
        key == "layer" || key == "dt_init" || key == "A_init_range" || key == "conv_init" || key.starts_with("use_");
    if (!idle && !value.is_null() && value != "auto") mixer[key] = value;
  }
  if (!mixer.contains("dt_limit")) return mixer;
  Config& limit = mixer["dt_limit"];
  const bool open = limit.is_array() && limit.size() == 2 && !limit[1].is_number();
  if (open) limit.erase(1);  // infinity, which JSON writes as null or a table
  return mixer;
}

Description read(ConfigFile& file) {
  const auto c = read_config<MambaSsmConfig>(
      file, {"residual_in_fp32", "fused_add_norm", "attn_cfg", "initializer_cfg", "model", "generate", "padded_vocab"});
  if (!c.attn_layer_idx.empty()) {
    reject(file, "attn_layer_idx", c.attn_layer_idx, "layers of attention are not supported in this family");
  }
  if (!c.ssm_cfg.is_object()) reject(file, "ssm_cfg", c.ssm_cfg, "expected a table");
  Config layer = {{"repeat", c.n_layer}, {"mixer", mixer_of(file, c.ssm_cfg)}};
  if (c.d_intermediate > 0) {
    layer["channel"] = {{"kind", "swiglu"}, {"hidden", rounded_up(c.d_intermediate, kMlpMultiple)}};
  }
  Description d;
  d.model = {{"width", c.d_model},
             {"layers", Config::array({layer})},
             {"norm", c.rms_norm ? "rms" : "layer"},
             {"norm_eps", c.norm_epsilon},
             {"tied", c.tie_embeddings}};
  d.vocabulary = rounded_up(c.vocab_size, c.pad_vocab_size_multiple);
  d.context = 2048;
  d.sizes = {{"backbone.embedding.weight", {d.vocabulary, c.d_model}}};
  return d;
}

Config write(const ModelTable& m) {
  Config ssm = m.mixer();
  ssm["layer"] = ssm.at("kind") == "mamba" ? "Mamba1" : "Mamba2";
  for (const char* key : {"kind", "conv before it"}) ssm.erase(key);
  for (auto item = ssm.begin(); item != ssm.end();) item = *item == "none" ? ssm.erase(item) : std::next(item);
  if (ssm.contains("dt_limit") && ssm["dt_limit"].size() == 1) ssm["dt_limit"].push_back(nullptr);
  const bool has_mlp = m.has("layers.0.channel.up_proj.weight");
  return {{"d_model", m.options.at("width")},
          {"n_layer", m.layers()},
          {"vocab_size", m.size("embedding.weight", 0)},
          {"pad_vocab_size_multiple", 1},
          {"d_intermediate", has_mlp ? m.size("layers.0.channel.up_proj.weight", 0) : 0},
          {"rms_norm", m.options.at("norm") == "rms"},
          {"norm_epsilon", m.options.at("norm_eps")},
          {"residual_in_fp32", true},
          {"fused_add_norm", true},
          {"tie_embeddings", m.options.at("tied")},
          {"ssm_cfg", ssm}};
}

std::string spelling(const std::string& name) {
  if (name == "lm_head.weight") return name;
  const std::string full = prefixed(name, "backbone.");
  return full == "backbone.embeddings.weight" ? "backbone.embedding.weight" : full;
}

Family family(const std::string& mixer) {
  return {.about = mixer == "mamba" ? "Mamba, its authors' spelling" : "Mamba-2, its authors' spelling",
          .task_kind = "language",
          .mixer = mixer,
          .channels = {"none", "swiglu"},
          .owns =
              [mixer](const Config& config) {
                if (!config.contains("d_model") || !config.contains("n_layer")) return false;
                const Config ssm = config.value("ssm_cfg", Config::object());
                return (ssm.is_object() && ssm.value("layer", Config()) == "Mamba2") == (mixer == "mamba2");
              },
          .read = read,
          .names = {{"backbone.embedding.weight", {"embedding.weight"}},
                    {"backbone.layers.#.norm.*", {"layers.#.mixer_norm.*"}},
                    {"backbone.layers.#.mixer.*", {"layers.#.mixer.*"}},
                    {"backbone.layers.#.norm2.*", {"layers.#.channel_norm.*"}},
                    {"backbone.layers.#.mlp.fc1.*", {"layers.#.channel.up_proj.*", "layers.#.channel.gate_proj.*"}},
                    {"backbone.layers.#.mlp.fc2.*", {"layers.#.channel.down_proj.*"}},
                    {"backbone.norm_f.*", {"final_norm.*"}},
                    {"lm_head.weight", {"head.weight"}}},
          .spelling = spelling,
          .write = write};
}

[[maybe_unused]] const bool registered =
    families().add("mamba_ssm", family("mamba")) && families().add("mamba2_ssm", family("mamba2"));

}  // namespace
}  // namespace seqloom::huggingface
