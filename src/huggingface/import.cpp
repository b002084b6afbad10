#include "huggingface/import.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "blocks/linear.h"
#include "huggingface/sentence_files.h"
#include "huggingface/shards.h"
#include "io/json.h"
#include "models/decoder.h"
#include "models/encoder.h"
#include "train/checkpoint.h"

namespace seqloom::huggingface {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLongestContext = 2048;  // that evaluation reads at once unless told
constexpr const char* kTokenizer = "tokenizer.json";

/// What is kept as it is for those who use the model: chat templates, ends of text, and the way back.
constexpr const char* kAttached[] = {"config.json", "tokenizer_config.json", "special_tokens_map.json",
                                     "generation_config.json", "chat_template.jinja"};

std::shared_ptr<Tokenizer> read_tokenizer(const ImportRequest& request, std::map<std::string, std::string>& attached) {
  const fs::path own = fs::path(request.folder) / kTokenizer;
  if (request.tokenizer.empty() && !fs::exists(own)) {
    fail(
        "{}: it is not there. Name a tokenizer with --tokenizer FILE (the models of state-spaces/mamba-* go with that "
        "of EleutherAI/gpt-neox-20b), or --tokenizer bytes",
        own.string());
  }
  const std::string spec = request.tokenizer.empty() ? own.string() : request.tokenizer;
  if (spec != "bytes") attached[kTokenizer] = read_file(spec);
  return make_tokenizer(spec);
}

/// Of all tensors read, so that a saved state belongs to these weights and no others.
class Fingerprint {
 public:
  void add(const Tensor& tensor) {
    const auto* bytes = static_cast<const unsigned char*>(tensor.data_ptr());
    uint64_t word = 0;
    for (size_t at = 0; at < tensor.nbytes(); at += sizeof(word)) {
      word = 0;
      std::copy_n(bytes + at, std::min(sizeof(word), tensor.nbytes() - at), reinterpret_cast<unsigned char*>(&word));
      hash_ = mixed(hash_, word);
    }
  }
  std::string text() const { return fmt::format("{:016x}", hash_); }

 private:
  uint64_t hash_ = 0;
};

Config recipe_of(const ImportRequest& request, const Family& family, const Description& d, const Tokenizer& tokenizer) {
  Config task = {{"kind", family.task_kind}};
  if (family.task_kind == "language") {
    task["tokenizer"] = tokenizer.kind() == "bytes" ? "bytes" : kTokenizer;
    task["context"] = std::min(d.context, kLongestContext);
  } else {
    task.update(read_sentence_files(request.folder, d.context));
  }
  return {{"task", task}, {"model", d.model}};
}

}  // namespace

std::shared_ptr<torch::nn::Module> build(const Family& family, const Description& d, int64_t tokens,
                                         const std::string& where) {
  const WithoutInitialisation unset;
  if (family.task_kind == "language") return std::make_shared<Decoder>(tokens, d.model, where);
  return std::make_shared<Encoder>(tokens, d.model, where);
}

void check_sizes(const Family& family, const Description& d, const TensorSource& source) {
  std::vector<std::string> problems;
  std::set<std::string> seen;
  for (const auto& [name, shape] : source.shapes) {
    const std::string known = family.spelling(name);
    seen.insert(known);
    const auto wanted = d.sizes.find(known);
    if (wanted == d.sizes.end() || wanted->second == shape) continue;
    problems.push_back(fmt::format("'{}' is [{}], config.json asks for [{}]", name, fmt::join(shape, ", "),
                                   fmt::join(wanted->second, ", ")));
  }
  for (const auto& [name, shape] : d.sizes) {
    if (seen.count(name) == 0) problems.push_back(fmt::format("'{}' is missing", name));
  }
  if (!problems.empty()) fail("{}: does not fit config.json: {}", source.name, fmt::join(problems, "; "));
}

ImportReport import_checkpoint(const ImportRequest& request) {
  if (!fs::is_directory(request.folder)) fail("{}: there is no such folder", request.folder);
  ConfigFile file = open_config((fs::path(request.folder) / "config.json").string());
  ImportReport report;
  report.family = family_of(file);
  const Family& family = families().get(report.family);
  Description d = family.read(file);
  Shards shards = open_shards(request.folder);
  check_sizes(family, d, shards.source);

  Checkpoint checkpoint;
  const auto tokenizer = read_tokenizer(request, checkpoint.attachments);
  if (tokenizer->vocabulary() > d.vocabulary) {
    fail("{}: the tokenizer has {} tokens, the model {} rows: they do not belong together", request.folder,
         tokenizer->vocabulary(), d.vocabulary);
  }
  if (tokenizer->vocabulary() < d.vocabulary) d.model["vocabulary_rows"] = d.vocabulary;
  for (const char* name : kAttached) {
    const fs::path path = fs::path(request.folder) / name;
    if (fs::exists(path)) checkpoint.attachments[name] = read_file(path.string());
  }

  checkpoint.recipe = recipe_of(request, family, d, *tokenizer);
  const auto model = build(family, d, tokenizer->vocabulary(), file.name + ": model");
  Fingerprint fingerprint;
  TensorSource source = shards.source;
  source.load = [&](const std::string& name) {
    const Tensor tensor = shards.source.load(name);
    fingerprint.add(tensor);
    return tensor;
  };
  report.unused = fill(*model, family.names, family.spelling, source);
  checkpoint.recipe["source"] = {{"family", report.family}, {"weights", fingerprint.text()}};
  fs::create_directories(request.out);
  checkpoint.path = (fs::path(request.out) / "checkpoint.safetensors").string();
  save_checkpoint(checkpoint, *model, {});

  for (const auto& parameter : model->parameters()) report.parameters += parameter.numel();
  report.tensors = static_cast<int64_t>(shards.source.shapes.size());
  report.files = shards.files;
  report.vocabulary = tokenizer->vocabulary();
  report.tokenizer = tokenizer->kind();
  report.unknown = file.unknown;
  return report;
}

}  // namespace seqloom::huggingface
