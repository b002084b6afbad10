#include "memory/memory.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/fields.h"

namespace seqloom {
namespace {

constexpr const char* kFormat = "seqloom-memory-1";

void flatten_into(const Memory& memory, const std::string& prefix, TensorMap& out) {
  for (const auto& [name, tensor] : memory.tensors()) out[prefix + name] = tensor;
  for (const auto& [name, child] : memory.children()) flatten_into(child, prefix + name + ".", out);
}

std::vector<int64_t> numbers(const torch::Tensor& counts) {
  const torch::Tensor flat = counts.contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

/// A number, or one for each row where they differ.
void token_counts(const Memory& memory, const std::string& prefix, Config& out) {
  out[prefix] = memory.even() ? Config(memory.tokens) : Config(numbers(memory.counts(torch::zeros({0}))));
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
  int64_t rows;
  std::set<std::string> used;

  void read_counts(Memory& memory, const std::string& prefix) const {
    const auto is_count = [](const Config& n) { return n.is_number_integer() && n.get<int64_t>() >= 0; };
    const Config said = tokens.value(prefix, Config());
    if (is_count(said)) {
      memory.tokens = said.get<int64_t>();
    } else if (said.is_array() && static_cast<int64_t>(said.size()) == rows &&
               std::all_of(said.begin(), said.end(), is_count)) {
      memory.set_counts(torch::tensor(said.get<std::vector<int64_t>>(), torch::kInt64));
    } else {
      fail("{}: it says no token count for '{}' (a number, or one for each of {} rows): not a state of this model",
           path, prefix, rows);
    }
  }

  Memory read(const Memory& empty, const std::string& prefix) {
    Memory memory;
    read_counts(memory, prefix);
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

torch::Tensor Memory::counts(const torch::Tensor& like) const {
  const auto options = torch::TensorOptions(torch::kInt64).device(like.device());
  return even() ? torch::full({like.size(0)}, tokens, options) : tokens - behind_.to(like.device());
}

void Memory::set_counts(const torch::Tensor& counts) {
  tokens = counts.numel() > 0 ? counts.max().item<int64_t>() : 0;
  const torch::Tensor behind = tokens - counts;
  behind_ = behind.any().item<bool>() ? behind : torch::Tensor();
}

void Memory::advance(int64_t count, const torch::Tensor& keep) {
  if (keep.defined()) {
    set_counts(counts(keep) + keep.sum(1));
  } else {
    tokens += count;
  }
}

void Memory::add_parts(std::vector<Memory*>& parts) {
  parts.push_back(this);
  for (auto& [name, part] : children_) part.add_parts(parts);
}

torch::Tensor Memory::tree_counts(const torch::Tensor& like) const {
  std::vector<torch::Tensor> all = {counts(like).unsqueeze(1)};
  for (const auto& [name, part] : children_) all.push_back(part.tree_counts(like));
  return torch::cat(all, 1);
}

void Memory::set_tree_counts(const torch::Tensor& counts) {
  std::vector<Memory*> parts;
  add_parts(parts);
  for (size_t i = 0; i < parts.size(); ++i) parts[i]->set_counts(counts.select(1, static_cast<int64_t>(i)));
}

Memory Memory::map(const std::function<torch::Tensor(const torch::Tensor&)>& f) const {
  return zip(*this, [&](const torch::Tensor& own, const torch::Tensor&) { return f(own); });
}

Memory Memory::zip(const Memory& other,
                   const std::function<torch::Tensor(const torch::Tensor&, const torch::Tensor&)>& f) const {
  Memory result;
  result.tokens = tokens;
  result.behind_ = behind_;
  for (const auto& [name, tensor] : tensors_) result[name] = f(tensor, other.at(name));
  for (const auto& [name, part] : children_) result.child(name) = part.zip(other.child(name), f);
  return result;
}

Memory Memory::clone() const {
  return map([](const torch::Tensor& t) { return t.detach().clone(); });
}

Memory Memory::select_rows(const torch::Tensor& index) const {
  Memory rows;
  rows.tokens = tokens;
  if (!even()) rows.set_counts(counts(index).index_select(0, index));
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

torch::Tensor rows_of(const torch::Tensor& chosen, const torch::Tensor& a, const torch::Tensor& b) {
  torch::Tensor wide = chosen;
  for (int64_t d = 1; d < a.dim(); ++d) wide = wide.unsqueeze(-1);
  return torch::where(wide, a, b);
}

Memory rows_of(const torch::Tensor& chosen, const Memory& a, const Memory& b) {
  Memory result;
  result.set_counts(rows_of(chosen, a.counts(chosen), b.counts(chosen)));
  for (const auto& [name, tensor] : a.tensors()) result[name] = rows_of(chosen, tensor, b.at(name));
  for (const auto& [name, part] : a.children()) result.child(name) = rows_of(chosen, part, b.child(name));
  return result;
}

std::string numbered(const std::string& name, size_t i) {
  return fmt::format("{}.{}", name, i);
}

void check_fixed_size(const Memory& empty, const std::string& where, const std::string& therefore) {
  for (const auto& [name, tensor] : empty.flatten()) {
    if (tensor.numel() > 0) continue;
    misuse("{}: its memory grows with the tokens ({} is {} when empty), {}", where, name, fmt::streamed(tensor.sizes()),
           therefore);
  }
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
  const TensorMap all = empty.flatten();
  MemoryReader reader{path, file, tokens, all.empty() ? 0 : all.begin()->second.size(0), {}};
  Memory memory = reader.read(empty, "");
  for (const auto& [name, info] : file.tensors()) {
    if (reader.used.count(name) == 0) fail("{}: tensor '{}' does not belong to a state of this model", path, name);
  }
  return memory;
}

torch::Tensor append(const torch::Tensor& cache, const torch::Tensor& fresh, int64_t dim, int64_t keep) {
  const int64_t added = fresh.size(dim);
  if (torch::GradMode::is_enabled() && (cache.requires_grad() || fresh.requires_grad())) {
    torch::Tensor all = torch::cat({cache, fresh.to(cache.scalar_type())}, dim);
    return keep < 0 ? all : all.narrow(dim, std::max<int64_t>(0, all.size(dim) - keep), std::min(keep, all.size(dim)));
  }
  if (keep >= 0 && added >= keep)
    return fresh.narrow(dim, added - keep, keep).to(cache.scalar_type()).contiguous().clone();
  torch::Tensor all = grown(cache, added, dim, keep);
  all.narrow(dim, all.size(dim) - added, added).copy_(fresh);
  return all;
}

torch::Tensor grown(const torch::Tensor& cache, int64_t added, int64_t dim, int64_t keep) {
  const int64_t old_size = cache.size(dim);
  const int64_t kept = keep < 0 ? old_size : std::min(old_size, std::max<int64_t>(0, keep - added));
  // A cache made here is a view that begins somewhere in a buffer whose extent along `dim` is its capacity.
  const torch::Tensor buffer = cache.is_view() ? torch::Tensor(cache._base()) : torch::Tensor();
  const int64_t start = buffer.defined() && old_size > 0 ? cache.storage_offset() / cache.stride(dim) : 0;
  const bool own = buffer.defined() && buffer.strides() == cache.strides();  // not some other view, as a transposed one
  if (own && start + old_size + added <= buffer.size(dim)) {
    return buffer.narrow(dim, start + old_size - kept, kept + added);
  }
  auto sizes = cache.sizes().vec();
  sizes[dim] = keep < 0 ? std::max<int64_t>(2 * (kept + added), 16) : 2 * std::max(keep, kept + added);
  torch::Tensor all = torch::empty(sizes, cache.options().requires_grad(false));
  if (kept > 0) all.narrow(dim, 0, kept).copy_(cache.narrow(dim, old_size - kept, kept));
  return all.narrow(dim, 0, kept + added);
}

namespace {

/// `cache` with `keep` of the `added` entries that it has got since it was `before`; undefined if it is not such a one.
torch::Tensor shortened(const torch::Tensor& cache, const torch::Tensor& before, int64_t added, int64_t keep) {
  if (cache.sizes() == before.sizes()) return cache.numel() == 0 ? cache : torch::Tensor();
  int64_t grows = -1;
  for (int64_t d = 0; d < cache.dim(); ++d) {
    if (cache.size(d) == before.size(d)) continue;
    if (grows >= 0 || cache.size(d) != before.size(d) + added) return {};
    grows = d;
  }
  return cache.narrow(grows, 0, before.size(grows) + keep);
}

/// Whether a memory can be cut back; does it where asked to.
bool cut(Memory& memory, const Memory& place, int64_t keep, bool apply) {
  const int64_t added = memory.tokens - place.tokens;
  for (const auto& [name, tensor] : memory.tensors()) {
    const torch::Tensor shorter = shortened(tensor, place.at(name), added, keep);
    if (!shorter.defined()) return false;
    if (apply) memory[name] = shorter;
  }
  for (const auto& [name, part] : memory.children()) {
    if (!cut(memory.child(name), place.child(name), keep, apply)) return false;
  }
  if (apply && added > 0) memory.tokens = place.tokens + keep;
  return true;
}

}  // namespace

bool cut_back(Memory& memory, const Memory& place, int64_t keep) {
  return cut(memory, place, keep, /*apply=*/false) && cut(memory, place, keep, /*apply=*/true);
}

Memory place_of(const Memory& memory, const Memory& empty) {
  return memory.zip(empty, [](const torch::Tensor& own, const torch::Tensor& first) {
    return first.numel() == 0 ? own : own.detach().clone();
  });
}

}  // namespace seqloom
