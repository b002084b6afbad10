#include "huggingface/model_table.h"

#include <algorithm>

#include "blocks/channel.h"
#include "mixers/mixer.h"
#include "models/decoder.h"
#include "models/encoder.h"

namespace seqloom::huggingface {
namespace {

/// A table with the options that it leaves out.
Config completed(const Fields& fields, const Config& table) {
  Config all = {{"kind", table.value("kind", Config())}};
  for (const auto& field : fields.list()) {
    all[field.name()] = field.get();
    for (const auto& [key, value] : table.items()) {
      if (field.answers_to(key)) all[field.name()] = value;
    }
  }
  return all;
}

Config whole_mixer(const Config& table) {
  const auto kind = table.at("kind").get<std::string>();
  Config all = completed(mixers().get(kind).fields(), table);
  if (kind == "attention") {
    const Config type = all["rope_scaling"].value("rope_type", all["rope_scaling"].value("type", Config("default")));
    if (type == "default" || type == "none") all["rope_scaling"] = Config::object();
  }
  return all;
}

Config whole_channel(const Config& table) {
  const auto kind = table.at("kind").get<std::string>();
  return kind == "none" ? table : completed(channel_mixers().get(kind).fields(), table);
}

template <typename Options>
ModelTable written(const Config& model, const std::string& where) {
  ModelTable table;
  table.options = write_options(read_options<Options>(model, where));
  for (const auto& layer : table.options.at("layers")) {
    for (int64_t r = 0; r < layer.value("repeat", int64_t{1}); ++r) {
      table.mixers.push_back(whole_mixer(layer.at("mixer")));
      table.channels.push_back(whole_channel(layer.value("channel", table.options.at("channel"))));
      table.mixers.back()["conv before it"] = layer.value("conv", 0);
    }
  }
  for (const char* key : {"layers", "channel"}) table.options.erase(key);
  return table;
}

/// Options that say nothing of what the model computes beyond its parameters' shapes.
bool idle(const Config& table, const std::string& key) {
  static const std::vector<std::string> always = {"kv_heads",      "head_dim",      "hidden",          "expand",
                                                  "dt_rank",       "d_ssm",         "vocabulary_rows", "dt_min",
                                                  "dt_max",        "dt_init_floor", "dt_scale",        "chunk_size",
                                                  "max_positions", "num_buckets",   "max_distance",    "carope"};
  if (std::find(always.begin(), always.end(), key) != always.end()) return true;
  const Config kind = table.value("kind", Config());
  if (kind == "attention") {
    const bool rope = key.starts_with("rope_") || key == "rotary_dim";
    return key == "bias" || (rope && table.at("position") != "rope") ||
           (key == "qk_norm_eps" && table.at("qk_norm") == false);
  }
  return key == "max_length" && table.value("position", Config()) == "none";
}

void compare(const Config& table, const Config& other, const std::string& where, std::vector<std::string>& found) {
  for (const auto& [key, value] : table.items()) {
    if (idle(table, key)) continue;
    const Config would_be = other.value(key, Config("none"));
    if (value != would_be)
      found.push_back(fmt::format("{}{} = {} (it would be {})", where, key, value.dump(), would_be.dump()));
  }
}

}  // namespace

ModelTable write_out(const Config& model, const std::string& task_kind, const std::string& where) {
  return task_kind == "language" ? written<DecoderOptions>(model, where) : written<EncoderOptions>(model, where);
}

std::vector<std::string> differences(const ModelTable& model, const ModelTable& other) {
  std::vector<std::string> found;
  compare(model.options, other.options, "", found);
  if (model.layers() != other.layers()) {
    found.push_back(fmt::format("{} layers (it would be {})", model.layers(), other.layers()));
    return found;
  }
  for (size_t i = 0; i < model.mixers.size(); ++i) {
    compare(model.mixers[i], other.mixers[i], fmt::format("layers.{}.mixer.", i), found);
    compare(model.channels[i], other.channels[i], fmt::format("layers.{}.channel.", i), found);
  }
  return found;
}

Config layer_list(const std::vector<Config>& layers) {
  Config list = Config::array();
  for (const auto& layer : layers) {
    Config* last = list.empty() ? nullptr : &list.back();
    Config before = last == nullptr ? Config() : *last;
    if (last != nullptr) before.erase("repeat");
    if (last != nullptr && before == layer) {
      (*last)["repeat"] = (*last)["repeat"].get<int64_t>() + 1;
    } else {
      list.push_back(layer);
      list.back()["repeat"] = 1;
    }
  }
  return list;
}

}  // namespace seqloom::huggingface
