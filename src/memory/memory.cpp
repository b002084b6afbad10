#include "memory/memory.h"

#include <set>

#include <fmt/ostream.h>
#include "base/error.h"

#include "base/fields.h"

namespace seqloom {
namespace {

constexpr const char* kFormat = "seqloom-memory-1";

void flatten_into(const Memory& memory, const std::string& prefix, TensorMap& out) {
  for (const auto& [name, tensor] : memory.tensors()) out[prefix + name] = tensor;
  for (const auto& [name, child] : memory.children()) flatten_into(child, prefix + name + ".", out);
}

void token_counts(const Memory& memory, const std::string& prefix, Config& out) {
  out[prefix] = memory.tokens;
  for (const auto& [name, child] : memory.children()) token_counts(child, prefix + name + ".", out);
}

/// Whether `tensor` may stand where an empty memory has `empty`: equal but for dimensions that grow from 0.
bool fits(const torch::Tensor& tensor, const torch::Tensor& empty) {
  if (tensor.scalar_type() != empty.scalar_type() || tensor.dim() != empty.dim()) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (empty.size(d) != 0 && tensor.size(d) != empty.size(d)) return false;
  }
  return true;
}

struct MemoryReader {
  const std::string& path;
  const Safetensors& file;
  const Config& tokens;
  std::set<std::string> used;

  Memory read(const Memory& empty, const std::string& prefix) {
    Memory memory;
    if (!tokens.contains(prefix) || !tokens[prefix].is_number_integer() || tokens[prefix].get<int64_t>() < 0) {
      fail("{}: it says no token count for '{}': not a state of this model", path, prefix);
    }
    memory.tokens = tokens[prefix].get<int64_t>();
    for (const auto& [name, like] : empty.tensors()) {
      const std::string full = prefix + name;
      if (!file.contains(full)) fail("{}: tensor '{}' is missing: not a state of this model", path, full);
      memory[name] = file.load(full);
      if (!fits(memory[name], like)) {
        fail("{}: tensor '{}' is {} {}, but this model keeps {} {} (0 grows with the stream)", path, full,
             toString(memory[name].scalar_type()), fmt::streamed(memory[name].sizes()), toString(like.scalar_type()),
             fmt::streamed(like.sizes()));
      }
      memory[name] = memory[name].to(like.device());
      used.insert(full);
    }
    for (const auto& [name, child] : empty.children()) memory.child(name) = read(child, prefix + name + ".");
    return memory;
  }
};

}  // namespace

const torch::Tensor& Memory::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("the memory holds no tensor '{}'", name);
  return found->second;
}

const Memory& Memory::child(const std::string& name) const {
  const auto found = children_.find(name);
  if (found == children_.end()) fail("the memory has no part '{}'", name);
  return found->second;
}

Memory Memory::clone() const {
  Memory copy;
  copy.tokens = tokens;
  for (const auto& [name, tensor] : tensors_) copy[name] = tensor.detach().contiguous().clone();
  for (const auto& [name, part] : children_) copy.child(name) = part.clone();
  return copy;
}

Memory Memory::select_rows(const torch::Tensor& index) const {
  Memory rows;
  rows.tokens = tokens;
  for (const auto& [name, tensor] : tensors_) rows[name] = tensor.index_select(0, index);
  for (const auto& [name, part] : children_) rows.child(name) = part.select_rows(index);
  return rows;
}

int64_t Memory::bytes() const {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += static_cast<int64_t>(tensor.storage().nbytes());
  for (const auto& [name, part] : children_) total += part.bytes();
  return total;
}

TensorMap Memory::flatten() const {
  TensorMap out;
  flatten_into(*this, "", out);
  return out;
}

void save_memory(const std::string& path, const Memory& memory, Metadata metadata) {
  Config tokens = Config::object();
  token_counts(memory, "", tokens);
  metadata["format"] = kFormat;
  metadata["tokens"] = tokens.dump();
  save_safetensors(path, memory.flatten(), metadata);
}

Memory load_memory(const std::string& path, const Memory& empty) {
  const Safetensors file(path);
  const auto format = file.metadata().find("format");
  if (format == file.metadata().end() || format->second != kFormat) {
    fail("{}: not a saved state (its metadata 'format' is not '{}')", path, kFormat);
  }
  const auto text = file.metadata().find("tokens");
  const Config tokens =
      text == file.metadata().end() ? Config() : Config::parse(text->second, nullptr, /*allow_exceptions=*/false);
  if (!tokens.is_object()) fail("{}: its metadata 'tokens' is not a table of token counts", path);
  MemoryReader reader{path, file, tokens, {}};
  Memory memory = reader.read(empty, "");
  for (const auto& [name, info] : file.tensors()) {
    if (reader.used.count(name) == 0) fail("{}: tensor '{}' does not belong to a state of this model", path, name);
  }
  return memory;
}

torch::Tensor append(const torch::Tensor& cache, const torch::Tensor& fresh, int64_t dim, int64_t keep) {
  const int64_t old_size = cache.size(dim), added = fresh.size(dim);
  if (torch::GradMode::is_enabled() && (cache.requires_grad() || fresh.requires_grad())) {
    torch::Tensor all = torch::cat({cache, fresh.to(cache.scalar_type())}, dim);
    return keep < 0 ? all : all.narrow(dim, std::max<int64_t>(0, all.size(dim) - keep), std::min(keep, all.size(dim)));
  }
  if (keep >= 0 && added >= keep)
    return fresh.narrow(dim, added - keep, keep).to(cache.scalar_type()).contiguous().clone();
  const int64_t kept = keep < 0 ? old_size : std::min(old_size, keep - added);
  // A cache made here is a view that begins somewhere in a buffer whose extent along `dim` is its capacity.
  const torch::Tensor buffer = cache.is_view() ? torch::Tensor(cache._base()) : torch::Tensor();
  const int64_t start = buffer.defined() && old_size > 0 ? cache.storage_offset() / cache.stride(dim) : 0;
  const bool own = buffer.defined() && buffer.strides() == cache.strides();  // not some other view, as a transposed one
  if (own && start + old_size + added <= buffer.size(dim)) {
    buffer.narrow(dim, start + old_size, added).copy_(fresh);
    return buffer.narrow(dim, start + old_size - kept, kept + added);
  }
  auto sizes = cache.sizes().vec();
  sizes[dim] = keep < 0 ? std::max<int64_t>(2 * (kept + added), 16) : 2 * keep;
  torch::Tensor grown = torch::empty(sizes, cache.options().requires_grad(false));
  if (kept > 0) grown.narrow(dim, 0, kept).copy_(cache.narrow(dim, old_size - kept, kept));
  grown.narrow(dim, kept, added).copy_(fresh);
  return grown.narrow(dim, 0, kept + added);
}

}  // namespace seqloom
