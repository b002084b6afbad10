#include "mixers/mixer.h"

#include <fmt/ostream.h>

#include "mixers/token_positions.h"
#include "ops/row_by_row.h"

namespace seqloom {
namespace {

void copy_context(const std::vector<std::string>& names, const Memory& from, Memory& to) {
  for (const auto& name : names) to[name] = from.at(name);
}

Memory part_of(const Memory& run, int64_t begin, int64_t count) {
  return run.map([&](const Tensor& t) { return t.narrow(1, begin, count); });
}

/// Of two runs, of which an empty one has no say in the type.
Tensor joined_in_time(const Tensor& left, const Tensor& right) {
  if (left.size(1) == 0 || right.size(1) == 0) return left.size(1) == 0 ? right : left;
  return torch::cat({left.to(right.scalar_type()), right}, 1);
}

}  // namespace

void Mixer::check_input(const Tensor& x) const {
  if (x.dim() != 3 || x.size(2) != width_) misuse("x is {}, expected [B, T, {}]", fmt::streamed(x.sizes()), width_);
  if (x.size(1) < 1) misuse("x has T = 0 tokens; at least one is needed");
}

torch::TensorOptions Mixer::state_options() const {
  const auto all = parameters();
  const auto device = all.empty() ? torch::Device(torch::kCPU) : all.front().device();
  const bool wide = !all.empty() && all.front().scalar_type() == torch::kFloat64;
  return torch::TensorOptions().dtype(wide ? torch::kFloat64 : torch::kFloat32).device(device);
}

Tensor Mixer::forward(const Tensor& x) {
  Pass pass;
  return forward(x, pass);
}

Tensor Mixer::forward(const Tensor& x, Pass& pass) {
  check_input(x);
  if (!pass.layout.is_packed()) return mix(x, pass);
  pass.layout.check_packed(x);
  if (takes_packed()) return mix(x, pass);
  const Layout packed = pass.layout;
  pass.layout = packed.unpacked();
  for (auto& [name, value] : pass.values) value = packed.unpack(value);
  const Tensor y = mix(packed.unpack(x), pass);
  pass.layout = packed;
  for (auto& [name, value] : pass.values) value = packed.pack(value);
  return packed.pack(y);
}

Tensor CausalMixer::extend(const Tensor& x, Memory& memory) {
  Pass pass;
  return extend(x, memory, pass);
}

namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

Shapes shapes_of(const Memory& memory) {
  Shapes shapes;
  for (const auto& [name, tensor] : memory.tensors()) shapes[name] = tensor.sizes().vec();
  return shapes;
}

/// A state of fixed size that is a slice of what a whole run of tokens left would keep all of that alive: it gets a
/// place of its own. Caches that grow in place change their shape or occupy up to twice their size (memory.h).
void release_slices(Memory& memory, const Shapes& before) {
  for (const auto& [name, tensor] : memory.tensors()) {
    const auto old = before.find(name);
    if (old == before.end() || tensor.sizes() != torch::IntArrayRef(old->second) || tensor.requires_grad()) continue;
    const auto own = static_cast<size_t>(tensor.numel()) * tensor.element_size();
    if (tensor.storage().nbytes() > 2 * own) memory[name] = tensor.clone();
  }
}

}  // namespace

Tensor CausalMixer::extend(const Tensor& x, Memory& memory, Pass& pass) {
  check_input(x);
  if (!causal()) misuse("a bidirectional mixer cannot stream; configure it with causal = true");
  if (pass.layout.is_packed()) misuse("packed rows cannot extend a memory; give them as a padded batch");
  const Shapes before = shapes_of(memory);
  Tensor y = read(x, memory, pass);
  release_slices(memory, before);
  memory.advance(x.size(1), pass.layout.keep(x.size(0), x.size(1)));
  return y;
}

Tensor CausalMixer::step(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) {
  if (x.dim() != 2 || x.size(1) != width() || x.size(0) != static_cast<int64_t>(streams.size())) {
    misuse("x is {}, expected [S, {}] for S = {} streams", fmt::streamed(x.sizes()), width(), streams.size());
  }
  if (!causal()) misuse("a bidirectional mixer cannot stream; configure it with causal = true");
  if (!pass.layout.is_dense()) misuse("a step reads one token of each stream: there is no padding in it");
  if (streams.empty()) return x;
  if (torch::GradMode::is_enabled()) return CausalMixer::read_each(x, streams, pass);  // the others have no gradients
  const ops::RowByRow row_by_row;
  return read_each(x, streams, pass);
}

Tensor CausalMixer::read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) {
  std::vector<Tensor> outputs;
  std::map<std::string, std::vector<Tensor>> handed_on;
  for (size_t i = 0; i < streams.size(); ++i) {
    const auto own = [row = static_cast<int64_t>(i)](const Tensor& t) { return t.narrow(0, row, 1); };
    Pass alone;
    alone.watch = pass.watch;
    if (pass.positions.defined()) alone.positions = own(pass.positions);
    for (const auto& [name, value] : pass.values) alone.values[name] = own(value);
    outputs.push_back(extend(own(x).unsqueeze(1), *streams[i], alone).squeeze(1));
    for (const auto& [name, value] : alone.values) handed_on[name].push_back(value);
    pass.losses.insert(pass.losses.end(), alone.losses.begin(), alone.losses.end());
  }
  for (const auto& [name, rows] : handed_on) pass.values[name] = torch::cat(rows, 0);
  return torch::cat(outputs, 0);
}

Tensor CausalMixer::mix(const Tensor& x, Pass& pass) {
  Memory memory = empty_memory(pass.layout.sequences(x.size(0)));
  return read(x, memory, pass);
}

Memory ScannableMixer::run_of(const Tensor& x, const Pass& pass) const {
  Memory run;
  run["x"] = x;
  if (positioned()) {
    if (!pass.positions.defined()) misuse("a summary of this mixer depends on where its tokens stand: give positions");
    run["positions"] = given_positions(x, pass);
  }
  for (const auto& name : takes()) {
    const auto value = pass.values.find(name);
    if (value == pass.values.end() || value->second.sizes() != x.sizes()) {
      misuse("a summary of this mixer needs the values '{}' of a layer before it, {} as x", name,
             fmt::streamed(x.sizes()));
    }
    run[name] = value->second;
  }
  return run;
}

Memory ScannableMixer::element_of(const Memory& run, Memory& memory) {
  Pass pass;
  if (positioned()) pass.positions = run.at("positions");
  for (const auto& name : takes()) pass.values[name] = run.at(name);
  Memory result = element(run.at("x"), memory, pass);
  result.tokens = run.at("x").size(1);
  return result;
}

Memory ScannableMixer::counted_combine(const Memory& left, const Memory& right) const {
  Memory result = combine_elements(left, right);
  result.tokens = left.tokens + right.tokens;
  return result;
}

Summary ScannableMixer::identity(int64_t batch) const {
  Summary summary;
  const Memory empty = empty_memory(batch);
  Pass nothing;
  const Tensor no_tokens = torch::zeros({batch, 0, width()}, state_options());
  nothing.positions = torch::zeros({batch, 0}, state_options().dtype(torch::kInt64));
  for (const auto& name : takes()) nothing.values[name] = no_tokens;
  summary.child("head") = run_of(no_tokens, nothing);
  summary.child("element") = identity_element(batch);
  copy_context(context(), empty, summary.child("tail"));
  return summary;
}

Summary ScannableMixer::summarize(const Tensor& x) {
  return summarize(x, Pass());
}

Summary ScannableMixer::summarize(const Tensor& x, const Pass& pass) {
  check_input(x);
  if (!pass.layout.is_dense()) misuse("a summary counts its tokens in all rows: give rows without padding");
  const Memory run = run_of(x, pass);
  const int64_t head = std::min(x.size(1), reach());
  Summary summary;
  summary.tokens = x.size(1);
  summary.child("head") = part_of(run, 0, head);
  Memory local = empty_memory(x.size(0));
  if (head > 0) element_of(summary.child("head"), local);  // only for the context that it leaves
  summary.child("element") =
      head < x.size(1) ? element_of(part_of(run, head, x.size(1) - head), local) : identity_element(x.size(0));
  copy_context(context(), local, summary.child("tail"));
  return summary;
}

Summary ScannableMixer::combine(const Summary& left, const Summary& right) {
  const Memory& right_head = right.child("head");
  const int64_t batch = right_head.at("x").size(0), waiting = right_head.at("x").size(1);
  Memory local = empty_memory(batch);
  copy_context(context(), left.child("tail"), local);
  // Tokens that are still too near the left end to have their whole context stay in the head.
  const int64_t stay = std::clamp<int64_t>(reach() - left.tokens, 0, waiting);

  Summary both;
  both.tokens = left.tokens + right.tokens;
  const Memory still = part_of(right_head, 0, stay);
  both.child("head") = left.child("head").zip(still, joined_in_time);
  if (stay > 0) element_of(still, local);
  Memory front = counted_combine(
      left.child("element"),
      stay < waiting ? element_of(part_of(right_head, stay, waiting - stay), local) : identity_element(batch));
  both.child("element") = counted_combine(front, right.child("element"));
  copy_context(context(), right.tokens >= reach() ? right.child("tail") : local, both.child("tail"));
  return both;
}

void ScannableMixer::apply(const Summary& summary, Memory& memory) {
  const Memory& head = summary.child("head");
  if (head.at("x").size(1) > 0) {
    const Memory first = element_of(head, memory);
    apply_element(first, memory);
    memory.tokens += first.tokens;
  }
  apply_element(summary.child("element"), memory);
  memory.tokens += summary.child("element").tokens;
  if (summary.tokens >= reach()) copy_context(context(), summary.child("tail"), memory);
}

Registry<MixerEntry>& mixers() {
  static Registry<MixerEntry> registry("mixer");
  return registry;
}

std::shared_ptr<Mixer> make_mixer(int64_t width, const Config& table, const std::string& where) {
  if (!table.is_object() || !table.contains("kind") || !table["kind"].is_string()) {
    misuse("{}: expected a table with a kind, like {{ kind = \"attention\" }}", where);
  }
  const auto kind = table["kind"].get<std::string>();
  if (!mixers().contains(kind)) {
    const std::string near = nearest(kind, mixers().names());
    misuse("{}.kind = \"{}\": there is no such mixer{}; there are: {}", where, kind,
           near.empty() ? "" : ", did you mean '" + near + "'?", fmt::join(mixers().names(), ", "));
  }
  return mixers().get(kind).make(width, table, where);
}

}  // namespace seqloom
