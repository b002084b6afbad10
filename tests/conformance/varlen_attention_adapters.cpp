#include "conformance/case.h"
#include "ops/attention_merge.h"
#include "ops/packing.h"
#include "ops/varlen_attention.h"

#include <cmath>
#include <limits>

namespace seqloom::conformance {
namespace {

using torch::Tensor;

TensorMap pack_padding(Case& c) {
  const Tensor x = c.input("x");
  const auto packed = ops::pack_padding(x, c.input("mask"), c.config.value("allow_holes", false));
  return {{"y", packed.data},
          {"cu_seqlens", packed.cu_seqlens},
          {"indices", packed.indices},
          {"max_seqlen", torch::full({1}, packed.longest, torch::kInt64)},
          {"unpacked", ops::unpack_padding(packed.data, packed.indices, x.size(0), x.size(1))}};
}

template <typename T>
std::optional<T> optional_number(const Case& c, const char* key) {
  const Config value = c.config.value(key, Config());
  return value.is_number() ? std::make_optional(value.get<T>()) : std::nullopt;
}

TensorMap varlen_attention(Case& c) {
  if (c.config.value("causal_alignment", "bottom_right") != "bottom_right") throw Unsupported("causal_alignment");
  const auto [y, lse] = ops::varlen_attention(
      c.input("q"), c.input("k"), c.input("v"), c.input("cu_seqlens_q"), c.input("cu_seqlens_k"),
      c.config.at("causal").get<bool>(), optional_number<int64_t>(c, "window"), optional_number<double>(c, "scale"));
  return {{"y", y}, {"lse", lse}};
}

TensorMap attention_merge(Case& c) {
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  const auto lse_of = [&](const char* lse, const char* empty) {
    return c.has(empty) ? c.input(lse).masked_fill(c.input(empty), kHidden) : c.input(lse);
  };
  const auto [o, lse] =
      ops::attention_merge(c.input("o1"), lse_of("lse1", "empty1"), c.input("o2"), lse_of("lse2", "empty2"));
  const Tensor empty = lse.isneginf();
  return {{"o", o}, {"y", o}, {"lse", lse.masked_fill(empty, 0)}, {"empty", empty}};
}

/// The counter generator that the cases spell out: [T, d] uniform numbers of variance 1.
Tensor generated(uint64_t seed, int64_t tokens, int64_t width) {
  Tensor x = torch::empty({tokens, 1, width});
  auto* out = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tokens * width; ++i) {
    uint64_t z = seed + (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    out[i] = static_cast<float>((2 * std::ldexp(static_cast<double>(z >> 40), -24) - 1) * std::sqrt(3.0));
  }
  return x;
}

TensorMap long_attention(Case& c) {
  if (c.config.value("batch", 1) != 1 || c.config.value("heads", 1) != 1) throw Unsupported("more than one head");
  const auto tokens = c.config.at("T").get<int64_t>(), width = c.config.at("head_dim").get<int64_t>();
  const auto seed = c.config.at("seed").get<uint64_t>();
  const Tensor q = generated(seed, tokens, width), k = generated(seed + 1, tokens, width),
               v = generated(seed + 2, tokens, width);
  const auto equal = [](const Tensor& part, const Tensor& want) { return torch::equal(part.squeeze(1), want); };
  if (!equal(q.slice(0, 0, 4), c.input("q_head")) || !equal(k.slice(0, 0, 4), c.input("k_head")) ||
      !equal(v.slice(0, tokens - 4, tokens), c.input("v_tail"))) {
    throw std::runtime_error("the generated inputs are not those of the case");
  }
  const Tensor offsets = torch::tensor({int64_t{0}, tokens}), rows = c.input("rows");
  const auto [y, lse] = ops::varlen_attention(q, k, v, offsets, offsets, c.config.at("causal").get<bool>());
  return {{"y", y.squeeze(1).index_select(0, rows)}, {"lse", lse.squeeze(1).index_select(0, rows)}};
}

[[maybe_unused]] const bool registered =
    adapters().add("op.pack_padding", pack_padding) && adapters().add("op.varlen_attention", varlen_attention) &&
    adapters().add("op.attention_merge", attention_merge) && adapters().add("op.long_attention", long_attention);

}  // namespace
}  // namespace seqloom::conformance
