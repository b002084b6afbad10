// The fused prefix softmax against the chunked reference.
#include <limits>

#include "base/error.h"
#include "ops/prefix_softmax_scan.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Inputs s, v and, with a state, u and w; the maximum before is a constant.
TestedOp scan_op(const Tensor& m = {}, const std::optional<Tensor>& mask = {}, bool heads_last = false,
                 const std::optional<Tensor>& cu_seqlens = {}) {
  return [=](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    const Tensor v = heads_last ? in[1].transpose(1, 2) : in[1];
    std::optional<ops::SoftmaxPartial> initial;
    if (m.defined()) initial = {m, in[2], in[3]};
    const auto [y, state] = ops::prefix_softmax_scan(in[0], v, mask, initial, cu_seqlens);
    return {y, torch::nan_to_num(state.m, 0, 0, -1), state.u, state.w};  // the maximum of nothing is -inf
  };
}

std::vector<Tensor> with_state(const Tensor& s, const Tensor& v) {
  return {s, v, torch::rand({s.size(0), s.size(1)}) + 0.5, torch::randn({s.size(0), s.size(1), v.size(3)})};
}

TEST(FusedPrefixSoftmax, EqualsTheReferenceForAnyShapeAndType) {
  torch::manual_seed(1);
  for (const auto& [tokens, width] : {std::pair{1, 4}, {2, 1}, {33, 7}, {64, 16}, {150, 37}, {300, 64}}) {
    SCOPED_TRACE(fmt::format("T {} d {}", tokens, width));
    const Tensor s = torch::randn({2, 3, tokens}) * 3, v = torch::randn({2, 3, tokens, width}),
                 m = torch::randn({2, 3});
    expect_fused_equals_reference(scan_op(), {s, v}, 1e-5);
    expect_fused_equals_reference(scan_op(m), with_state(s, v), 1e-5);
    expect_fused_equals_reference(scan_op(m), with_state(s, v.to(torch::kBFloat16)), 0.02);
    expect_fused_equals_reference(scan_op({}, {}, true), {s, v.transpose(1, 2).contiguous()}, 1e-5);
  }
}

TEST(FusedPrefixSoftmax, TakesHugeScoresMasksAndNothingAtAll) {
  torch::manual_seed(2);
  const Tensor s = torch::randn({2, 2, 40}) * 100, v = torch::randn({2, 2, 40, 6});
  expect_fused_equals_reference(scan_op(), {s, v}, 1e-5);
  const Tensor none = torch::full({2, 2}, -kInfinity);
  const auto nothing = std::vector<Tensor>{s, v, torch::zeros({2, 2}), torch::zeros({2, 2, 6})};
  expect_fused_equals_reference(scan_op(none), nothing, 1e-5);
  Tensor mask = torch::rand({2, 1, 40}) < 0.5;
  mask.narrow(2, 0, 9).fill_(false);
  expect_fused_equals_reference(scan_op({}, mask), {s, v}, 1e-5);
  expect_fused_equals_reference(scan_op(none, torch::zeros_like(mask)), nothing, 1e-5);
}

TEST(FusedPrefixSoftmax, IsExactFarBeyondAChunk) {
  torch::manual_seed(3);
  const Tensor s = torch::randn({1, 2, 5000}), v = torch::randn({1, 2, 5000, 8});
  const Tensor got = ops::prefix_softmax_scan(s, v, {}, {}).first;
  const Tensor want = ops::prefix_softmax_scan(s.to(torch::kFloat64), v.to(torch::kFloat64), {}, {}).first;
  expect_near(got, want, 1e-5, "long row");
}

TEST(FusedPrefixSoftmax, SecondDerivativesAreThoseOfTheReference) {
  torch::manual_seed(4);
  const Tensor s = torch::randn({1, 2, 7}), v = torch::randn({1, 2, 7, 3});
  expect_same_second_derivatives(scan_op(torch::randn({1, 2})), with_state(s, v), 1e-4);
  expect_same_second_derivatives(scan_op({}, {}, false, torch::tensor({0, 4, 4, 5, 7})), {s, v}, 1e-4);
}

TEST(FusedPrefixSoftmax, PackedSequencesAreThoseAlone) {
  torch::manual_seed(5);
  const Tensor cu_seqlens = torch::tensor({0, 50, 50, 51, 58, 120}, torch::kInt32), m = torch::randn({5, 3});
  const auto alone = [&](const std::vector<Tensor>& in) {
    std::vector<std::vector<Tensor>> parts(4);
    for (int64_t r = 0; r < 5; ++r) {
      const int64_t begin = cu_seqlens[r].item<int64_t>(), size = cu_seqlens[r + 1].item<int64_t>() - begin;
      const auto own = scan_op(m.narrow(0, r, 1))(
          {in[0].narrow(2, begin, size), in[1].narrow(2, begin, size), in[2].narrow(0, r, 1), in[3].narrow(0, r, 1)});
      for (size_t i = 0; i < 4; ++i) parts[i].push_back(own[i]);
    }
    return std::vector<Tensor>{torch::cat(parts[0], 2), torch::cat(parts[1]), torch::cat(parts[2]),
                               torch::cat(parts[3])};
  };
  for (const int64_t width : {6, 40}) {
    const Tensor s = torch::randn({1, 3, 120}) * 3, v = torch::randn({1, 3, 120, width});
    const std::vector<Tensor> in = {s, v, torch::rand({5, 3}) + 0.5, torch::randn({5, 3, width})};
    const auto packed = scan_op(m, {}, false, cu_seqlens);
    expect_all_near(outputs_and_gradients(packed, in, false), outputs_and_gradients(alone, in, false), 1e-6, "each");
    expect_fused_equals_reference(packed, in, 1e-5);
    expect_fused_equals_reference(packed, {s, v.to(torch::kBFloat16), in[2], in[3]}, 0.02);
    expect_fused_equals_reference(scan_op({}, {}, true, cu_seqlens), {s, v.transpose(1, 2).contiguous()}, 1e-5);
  }
  EXPECT_THROW(scan_op({}, {}, false, torch::tensor({0, 3}))({torch::randn({1, 2, 4}), torch::randn({1, 2, 4, 3})}),
               UsageError);
}

}  // namespace
}  // namespace seqloom
