#include "huggingface/family.h"

namespace seqloom::huggingface {
namespace {

struct BertConfig {
  int64_t vocab_size = 30522, hidden_size = 768, num_hidden_layers = 12, num_attention_heads = 12;
  int64_t intermediate_size = 3072, max_position_embeddings = 512, type_vocab_size = 2;
  std::string hidden_act = "gelu";
  double layer_norm_eps = 1e-12;
  bool pooler = true;

  void describe(Fields& f) {
    f.add("vocab_size", vocab_size, "tokens").at_least(1).at_most(1 << 26);
    f.add("hidden_size", hidden_size, "width").at_least(1).at_most(1 << 16);
    f.add("num_hidden_layers", num_hidden_layers, "layers").at_least(1).at_most(1024);
    f.add("num_attention_heads", num_attention_heads, "heads").at_least(1).at_most(1 << 12);
    f.add("intermediate_size", intermediate_size, "hidden width").at_least(1).at_most(1 << 20);
    f.add("max_position_embeddings", max_position_embeddings, "longest text").at_least(1).at_most(1 << 24);
    f.add("type_vocab_size", type_vocab_size, "token types").at_least(1).at_most(1 << 16);
    f.add("hidden_act", hidden_act, "of the MLP");
    f.add("layer_norm_eps", layer_norm_eps, "of the norms").greater_than(0);
    f.add("pooler", pooler, "whether the checkpoint has a pooler");
  }
};

Description read(ConfigFile& file) {
  const auto c = read_config<BertConfig>(file, {"tie_word_embeddings"});
  const Config layer = {{"repeat", c.num_hidden_layers},
                        {"mixer",
                         {{"kind", "attention"},
                          {"heads", c.num_attention_heads},
                          {"causal", false},
                          {"qkv_bias", true},
                          {"o_bias", true}}},
                        {"channel",
                         {{"kind", "mlp"},
                          {"hidden", c.intermediate_size},
                          {"activation", activation_of(file, "hidden_act", c.hidden_act)}}}};
  Description d;
  d.model = {{"width", c.hidden_size},
             {"layers", Config::array({layer})},
             {"norm", "layer"},
             {"residual", "post"},
             {"norm_eps", c.layer_norm_eps},
             {"max_length", c.max_position_embeddings},
             {"token_types", c.type_vocab_size},
             {"pooler", c.pooler}};
  d.vocabulary = c.vocab_size;
  d.context = c.max_position_embeddings;
  d.sizes = {{"embeddings.word_embeddings.weight", {c.vocab_size, c.hidden_size}},
             {"embeddings.position_embeddings.weight", {c.max_position_embeddings, c.hidden_size}},
             {"embeddings.token_type_embeddings.weight", {c.type_vocab_size, c.hidden_size}},
             {"encoder.layer.0.intermediate.dense.weight", {c.intermediate_size, c.hidden_size}}};
  return d;
}

Config write(const ModelTable& m) {
  return {{"model_type", "bert"},
          {"architectures", {"BertModel"}},
          {"vocab_size", m.size("embedding.weight", 0)},
          {"hidden_size", m.options.at("width")},
          {"num_hidden_layers", m.layers()},
          {"num_attention_heads", m.mixer().at("heads")},
          {"intermediate_size", m.size("layers.0.channel.fc1.weight", 0)},
          {"max_position_embeddings", m.options.at("max_length")},
          {"type_vocab_size", m.options.at("token_types")},
          {"hidden_act", activation_name(m.channel().at("activation"))},
          {"layer_norm_eps", m.options.at("norm_eps")},
          {"pooler", m.options.at("pooler")}};
}

std::string spelling(const std::string& name) {
  std::string known = name.starts_with("bert.") ? name.substr(5) : name;
  if (known.starts_with("cls.") || known == "embeddings.position_ids") return "";
  for (const auto& [old, now] : {std::pair(".gamma", ".weight"), std::pair(".beta", ".bias")}) {
    if (known.ends_with(old)) known = known.substr(0, known.size() - std::string(old).size()) + now;
  }
  return known;
}

[[maybe_unused]] const bool registered =
    families().add("bert", {.about = "BERT and sentence encoders made of it, such as MiniLM (Devlin et al. 2018)",
                            .task_kind = "sentence_embedding",
                            .mixer = "attention",
                            .channels = {"mlp"},
                            .owns = has_model_type("bert"),
                            .read = read,
                            .names = {{"embeddings.word_embeddings.weight", {"embedding.weight"}},
                                      {"embeddings.position_embeddings.weight", {"position.weight"}},
                                      {"embeddings.token_type_embeddings.weight", {"token_type.weight"}},
                                      {"embeddings.LayerNorm.*", {"embedding_norm.*"}},
                                      {"encoder.layer.#.attention.self.query.*", {"layers.#.mixer.q_proj.*"}},
                                      {"encoder.layer.#.attention.self.key.*", {"layers.#.mixer.k_proj.*"}},
                                      {"encoder.layer.#.attention.self.value.*", {"layers.#.mixer.v_proj.*"}},
                                      {"encoder.layer.#.attention.output.dense.*", {"layers.#.mixer.o_proj.*"}},
                                      {"encoder.layer.#.attention.output.LayerNorm.*", {"layers.#.mixer_norm.*"}},
                                      {"encoder.layer.#.intermediate.dense.*", {"layers.#.channel.fc1.*"}},
                                      {"encoder.layer.#.output.dense.*", {"layers.#.channel.fc2.*"}},
                                      {"encoder.layer.#.output.LayerNorm.*", {"layers.#.channel_norm.*"}},
                                      {"pooler.dense.*", {"pooler.*"}}},
                            .spelling = spelling,
                            .write = write});

}  // namespace
}  // namespace seqloom::huggingface
