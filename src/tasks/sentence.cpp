#include "tasks/sentence.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "blocks/linear.h"

namespace seqloom {
namespace {

constexpr int64_t kBatchTokens = 2048;  // read at once: activations stay in the caches
constexpr double kTiny = 1e-12;
constexpr const char* kTokenizerFile = "tokenizer.json";

using Ids = std::vector<int32_t>;

/// Packs rows[order[begin .. end)].
std::pair<Tensor, Tensor> packed(const std::vector<Ids>& rows, const std::vector<size_t>& order, size_t begin,
                                 size_t end) {
  std::vector<int64_t> ids, offsets = {0};
  for (size_t i = begin; i < end; ++i) {
    const Ids& row = rows[order[i]];
    ids.insert(ids.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
  return {torch::tensor(ids, torch::kInt64).unsqueeze(0), torch::tensor(offsets, torch::kInt64)};
}

}  // namespace

Ids SentenceModel::encode(std::string_view text) const {
  const TokenFrame frame = tokenizer->frame();
  Ids ids = tokenizer->encode(text);
  const auto around = static_cast<int64_t>(frame.before.size() + frame.after.size());
  const int64_t room = std::max<int64_t>(0, options.max_length - around);
  if (static_cast<int64_t>(ids.size()) > room) ids.resize(static_cast<size_t>(room));
  ids.insert(ids.begin(), frame.before.begin(), frame.before.end());
  ids.insert(ids.end(), frame.after.begin(), frame.after.end());
  if (ids.empty()) misuse("a text without tokens has no vector");
  return ids;
}

Tensor SentenceModel::embed_packed(const Tensor& ids, const Tensor& offsets) const {
  Pass pass;
  pass.layout = Layout::packed(offsets);
  const Tensor vectors = pooled_tokens(encoder->hidden(ids, {}, pass), pass.layout, options.pooling);
  return options.normalize ? vectors / vectors.norm(2, -1, /*keepdim=*/true).clamp_min(kTiny) : vectors;
}

Tensor SentenceModel::embed(const std::vector<std::string>& texts, const std::function<void(int64_t)>& progress) const {
  const torch::NoGradGuard no_grad;
  std::vector<Ids> rows(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) rows[i] = encode(texts[i]);
  std::vector<size_t> order(texts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows[a].size() > rows[b].size(); });
  Tensor vectors = torch::empty({static_cast<int64_t>(texts.size()), encoder->width()});
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    int64_t tokens = 0;
    do {
      tokens += static_cast<int64_t>(rows[order[end++]].size());
    } while (end < order.size() && tokens + static_cast<int64_t>(rows[order[end]].size()) <= kBatchTokens);
    const auto [ids, offsets] = packed(rows, order, begin, end);
    const std::vector<int64_t> places(order.begin() + static_cast<int64_t>(begin),
                                      order.begin() + static_cast<int64_t>(end));
    vectors.index_copy_(0, torch::tensor(places, torch::kInt64), embed_packed(ids, offsets));
    progress(static_cast<int64_t>(end));
  }
  return vectors;
}

SentenceModel load_sentence_model(const std::string& path) {
  SentenceModel loaded;
  loaded.checkpoint = open_checkpoint(path);
  const Config& recipe = loaded.checkpoint.recipe;
  const Config task = recipe.value("task", Config::object());
  const Config kind = task.is_object() ? task.value("kind", Config()) : Config();
  if (kind != "sentence_embedding") fail("{}: not a sentence encoder (task.kind is {})", path, kind.dump());
  const std::string& file = loaded.checkpoint.path;
  loaded.options = read_options<SentenceOptions>(task, file + ": task", {"kind"});
  const auto attached = loaded.checkpoint.attachments.find(kTokenizerFile);
  loaded.tokenizer = attached == loaded.checkpoint.attachments.end()
                         ? make_tokenizer("bytes")
                         : parse_tokenizer(attached->second, path + ": tokenizer.json");
  const WithoutInitialisation about_to_be_mapped;
  loaded.encoder =
      std::make_shared<Encoder>(loaded.tokenizer->vocabulary(), recipe.value("model", Config()), file + ": model");
  if (loaded.options.max_length > loaded.encoder->max_length()) {
    fail("{}: task.max_length = {} is above model.max_length = {}", file, loaded.options.max_length,
         loaded.encoder->max_length());
  }
  map_model(loaded.checkpoint, *loaded.encoder);
  loaded.encoder->eval();
  return loaded;
}

}  // namespace seqloom
