#include "decode/session.h"

#include "base/error.h"

namespace seqloom {
namespace {

/// The state file's structure: the model's memory beside the session's own tensors.
Memory stored(Memory model, const Tensor& logits, const Tensor& recent) {
  Memory state;
  state.tokens = model.tokens;
  state["logits"] = logits;
  state["recent"] = recent;
  state.child("model") = std::move(model);
  return state;
}

}  // namespace

Session::Session(std::shared_ptr<Decoder> model, std::string model_id)
    : model_(std::move(model)), model_id_(std::move(model_id)), memory_(model_->empty_memory(1)) {}

void Session::read(const std::vector<int64_t>& tokens) {
  const torch::NoGradGuard no_grad;
  const auto total = static_cast<int64_t>(tokens.size());
  for (int64_t begin = 0; begin < total; begin += kChunk) {
    const int64_t count = std::min(kChunk, total - begin);
    const Tensor ids =
        torch::tensor(torch::ArrayRef<int64_t>(tokens.data() + begin, count), torch::kInt64).unsqueeze(0);
    const Tensor hidden = model_->extend(ids, memory_);
    if (begin + count == total) logits_ = model_->logits(hidden.select(1, count - 1)).squeeze(0);
  }
  recent_.insert(recent_.end(), tokens.end() - std::min<int64_t>(total, kRecent), tokens.end());
  if (recent_.size() > kRecent) recent_.erase(recent_.begin(), recent_.end() - kRecent);
}

int64_t Session::next(const SamplerOptions& options) {
  if (!logits_.defined()) misuse("nothing was read yet: give a prompt of at least one token, or load a state");
  const int64_t token = sample(logits_, recent_, options, memory_.tokens);
  read({token});
  return token;
}

Session Session::fork() const {
  Session other(model_, model_id_);
  other.memory_ = memory_.clone();
  other.logits_ = logits_.defined() ? logits_.clone() : Tensor();
  other.recent_ = recent_;
  return other;
}

void Session::save(const std::string& path) const {
  if (!logits_.defined()) misuse("nothing was read yet: there is no state to save");
  const Tensor recent = torch::tensor(torch::ArrayRef<int64_t>(recent_), torch::kInt64).unsqueeze(0);
  save_memory(path, stored(memory_.clone(), logits_.unsqueeze(0), recent), {{"model", model_id_}});
}

void Session::load(const std::string& path) {
  const auto metadata = Safetensors(path).metadata();
  const auto id = metadata.find("model");
  if (id != metadata.end() && id->second != model_id_) {
    fail("{}: this state belongs to another model (id {}, this one is {})", path, id->second, model_id_);
  }
  const Memory empty =
      stored(model_->empty_memory(1), torch::zeros({1, model_->vocabulary()}), torch::zeros({1, 0}, torch::kInt64));
  Memory state = load_memory(path, empty);
  const Tensor recent = state["recent"].flatten().contiguous();
  if (recent.numel() > 0 &&
      (recent.min().item<int64_t>() < 0 || recent.max().item<int64_t>() >= model_->vocabulary())) {
    fail("{}: 'recent' holds tokens outside the vocabulary of {}", path, model_->vocabulary());
  }
  recent_.assign(recent.const_data_ptr<int64_t>(), recent.const_data_ptr<int64_t>() + recent.numel());
  if (recent_.size() > kRecent) recent_.erase(recent_.begin(), recent_.end() - kRecent);
  logits_ = state["logits"].squeeze(0);
  memory_ = std::move(state.child("model"));
}

}  // namespace seqloom
