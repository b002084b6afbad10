#include "decode/stream.h"

#include <algorithm>

#include "base/error.h"
#include "ops/row_by_row.h"

namespace seqloom {
namespace {

/// The file's structure: the model's memory beside the stream's own tensors.
Memory stored(Memory model, const Tensor& logits, const Tensor& recent) {
  Memory state;
  state.tokens = model.tokens;
  state["logits"] = logits;
  state["recent"] = recent;
  state.child("model") = std::move(model);
  return state;
}

Tensor ids_of(torch::ArrayRef<int64_t> tokens) {
  return torch::tensor(tokens, torch::kInt64);
}

}  // namespace

int64_t Stream::bytes() const {
  return memory.bytes() + (logits.defined() ? static_cast<int64_t>(logits.nbytes()) : 0);
}

Stream Stream::fork() const {
  Stream other;
  other.memory = memory.clone();
  if (logits.defined()) other.logits = logits.clone();
  other.recent = recent;
  return other;
}

void Stream::note(torch::ArrayRef<int64_t> tokens) {
  const size_t last = std::min(tokens.size(), kRecent);
  recent.insert(recent.end(), tokens.end() - last, tokens.end());
  if (recent.size() > kRecent) recent.erase(recent.begin(), recent.end() - kRecent);
}

Stream empty_stream(const Decoder& model) {
  Stream stream;
  stream.memory = model.empty_memory(1);
  return stream;
}

int64_t bytes_for(const Decoder& model, int64_t tokens) {
  int64_t bytes = model.vocabulary() * static_cast<int64_t>(sizeof(float));
  for (const auto& [name, tensor] : model.empty_memory(1).flatten()) {
    int64_t entry = static_cast<int64_t>(tensor.element_size());
    for (const int64_t size : tensor.sizes()) entry *= std::max<int64_t>(1, size);
    bytes += tensor.numel() > 0 ? entry : 2 * entry * tokens;  // a cache has up to as much room again
  }
  return bytes;
}

void read(Decoder& model, Stream& stream, torch::ArrayRef<int64_t> tokens) {
  const torch::NoGradGuard no_grad;
  const auto total = static_cast<int64_t>(tokens.size());
  if (total > model.longest() - stream.tokens()) {
    misuse("{} tokens behind the {} read: the model can read no more than {}", total, stream.tokens(), model.longest());
  }
  for (int64_t begin = 0; begin < total; begin += Stream::kPiece) {
    const int64_t count = std::min(Stream::kPiece, total - begin);
    const Tensor hidden = model.extend(ids_of(tokens.slice(begin, count)).unsqueeze(0), stream.memory);
    if (begin + count == total) stream.logits = model.logits(hidden.select(1, count - 1)).squeeze(0);
  }
  stream.note(tokens);
}

int64_t draw(const Stream& stream, const SamplerOptions& options) {
  if (!stream.logits.defined()) misuse("nothing was read yet: give a prompt of at least one token, or load a state");
  return sample(stream.logits, stream.recent, options, stream.tokens());
}

namespace {

/// The logits behind one token of each memory.
Tensor stepped(Decoder& model, torch::ArrayRef<Memory*> memories, torch::ArrayRef<int64_t> tokens) {
  const torch::NoGradGuard no_grad;
  const ops::RowByRow row_by_row;
  return model.logits(model.step(ids_of(tokens), memories));
}

}  // namespace

void read_one(Decoder& model, torch::ArrayRef<Stream*> streams, torch::ArrayRef<int64_t> tokens) {
  std::vector<Memory*> memories;
  for (Stream* stream : streams) memories.push_back(&stream->memory);
  const Tensor logits = stepped(model, memories, tokens);
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i]->logits = logits[static_cast<int64_t>(i)];
    streams[i]->note(tokens.slice(i, 1));
  }
}

Tensor read_in_order(Decoder& model, Stream& stream, torch::ArrayRef<int64_t> tokens) {
  const Tensor logits = stepped(model, std::vector<Memory*>(tokens.size(), &stream.memory), tokens);
  stream.logits = logits[logits.size(0) - 1];
  stream.note(tokens);
  return logits;
}

void save_stream(const std::string& path, const Stream& stream, const std::string& model_id) {
  if (!stream.logits.defined()) misuse("nothing was read yet: there is no state to save");
  const Tensor recent = ids_of(stream.recent).unsqueeze(0);
  save_memory(path, stored(stream.memory.clone(), stream.logits.unsqueeze(0), recent), {{"model", model_id}});
}

Stream load_stream(const std::string& path, const Decoder& model, const std::string& model_id) {
  const auto metadata = Safetensors(path).metadata();
  const auto id = metadata.find("model");
  if (id != metadata.end() && id->second != model_id) {
    fail("{}: this state belongs to another model (id {}, this one is {})", path, id->second, model_id);
  }
  const Memory empty =
      stored(model.empty_memory(1), torch::zeros({1, model.vocabulary()}), torch::zeros({1, 0}, torch::kInt64));
  Memory state = load_memory(path, empty);
  const Tensor recent = state["recent"].flatten().contiguous();
  if (recent.numel() > 0 && (recent.min().item<int64_t>() < 0 || recent.max().item<int64_t>() >= model.vocabulary())) {
    fail("{}: 'recent' holds tokens outside the vocabulary of {}", path, model.vocabulary());
  }
  Stream stream;
  stream.note({recent.const_data_ptr<int64_t>(), static_cast<size_t>(recent.numel())});
  stream.logits = state["logits"].squeeze(0);
  stream.memory = std::move(state.child("model"));
  return stream;
}

}  // namespace seqloom
