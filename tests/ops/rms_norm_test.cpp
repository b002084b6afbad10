#include "ops/rms_norm.h"

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// Inputs x, weight and, gated, z.
TestedOp norm_op(bool gated, bool norm_before_gate, double eps = 1e-5) {
  return [=](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    if (!gated) return {ops::rms_norm(in[0], in[1], eps)};
    return {ops::gated_rms_norm(in[0], in[2], in[1], eps, norm_before_gate)};
  };
}

TEST(RmsNorm, FusedEqualsTheReferenceForAnyShapeGateAndType) {
  torch::manual_seed(1);
  for (const auto& shape :
       std::vector<std::vector<int64_t>>{{1}, {64}, {2, 3, 37}, {5, 1, 4, 16}, {700, 64}, {3, 4099}}) {
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      SCOPED_TRACE(fmt::format("n {} of {} {}", shape.back(), shape.size(), toString(type)));
      const Tensor x = torch::randn(shape).to(type), z = torch::randn(shape).to(type);
      const Tensor weight = torch::randn({shape.back()});
      const double tolerance = type == torch::kFloat32 ? 1e-5 : 0.02;
      expect_fused_equals_reference(norm_op(false, false), {x, weight}, tolerance);
      expect_fused_equals_reference(norm_op(true, true), {x, weight, z}, tolerance);
      expect_fused_equals_reference(norm_op(true, false), {x, weight, z}, tolerance);
    }
  }
}

TEST(RmsNorm, TheL2NormIsFusedAsOne) {
  torch::manual_seed(5);
  const TestedOp op = [](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {ops::l2_norm(in[0], 1e-6)}; };
  const Tensor x = torch::randn({3, 5, 37});
  expect_fused_equals_reference(op, {x}, 1e-5);
  expect_fused_equals_reference(op, {x * 1e-4}, 1e-4);
  expect_fused_equals_reference(op, {torch::zeros({2, 8})}, 1e-5);
  expect_fused_equals_reference(op, {x.to(torch::kBFloat16)}, 0.01);
}

TEST(RmsNorm, ReadsViewsWhereTheyLie) {
  torch::manual_seed(2);
  // heads moved before time, a slice of a projection in groups, a broadcast row, a gate of another type
  const Tensor x = torch::randn({2, 5, 3, 8}), wide = torch::randn({2, 5, 60}), row = torch::randn({1, 12});
  expect_fused_equals_reference(
      [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        return {ops::rms_norm(in[0].transpose(1, 2), in[1], 1e-5)};
      },
      {x, torch::randn({8})}, 1e-5);
  expect_fused_equals_reference(
      [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor y = in[0].narrow(-1, 7, 24).unflatten(-1, {4, 6}),
                     z = in[0].narrow(-1, 31, 24).unflatten(-1, {4, 6});
        return {ops::gated_rms_norm(y, z, in[1], 1e-5, false), ops::gated_rms_norm(y, z, in[1], 1e-5, true)};
      },
      {wide, torch::randn({4, 6})}, 1e-5);
  expect_fused_equals_reference(
      [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        return {ops::rms_norm(in[0].expand({7, 12}), in[1], 1e-5),
                ops::rms_norm(in[0].t().expand({12, 5}), in[2], 1e-5)};
      },
      {row, torch::randn({12}), torch::randn({5})}, 1e-5);
  expect_fused_equals_reference(norm_op(true, true),
                                {x, torch::randn({8}), torch::randn(x.sizes()).to(torch::kBFloat16)}, 0.01);
}

TEST(RmsNorm, TakesExtremesAsTheReferenceDoes) {
  const Tensor weight = torch::ones({20});
  const Tensor zero = torch::zeros({3, 20}), large = torch::full({3, 20}, 1e15),
               gates = torch::linspace(-200, 200, 60).view({3, 20});
  expect_fused_equals_reference(norm_op(false, false), {zero, weight}, 1e-5);
  expect_fused_equals_reference(norm_op(false, false), {large, weight}, 1e-5);
  expect_fused_equals_reference(norm_op(true, true), {torch::randn({3, 20}), weight, gates}, 1e-5);
  expect_fused_equals_reference(norm_op(true, false), {torch::randn({3, 20}), weight, gates}, 1e-5);
  Tensor bad = torch::randn({3, 20});
  bad[1][7] = NAN;
  on_every_target([&] {
    const Tensor nan = ops::rms_norm(bad, weight, 1e-5).isnan();
    EXPECT_TRUE(nan[1].all().item<bool>());
    EXPECT_EQ(nan.sum().item<int64_t>(), 20);
  });
}

TEST(RmsNorm, SecondDerivativesAreThoseOfTheReference) {
  torch::manual_seed(3);
  const std::vector<Tensor> in = {torch::randn({3, 7}), torch::randn({7}), torch::randn({3, 7})};
  expect_same_second_derivatives(norm_op(false, false), {in[0], in[1]}, 1e-4);
  expect_same_second_derivatives(norm_op(true, true), in, 1e-4);
  expect_same_second_derivatives(norm_op(true, false), in, 1e-4);
}

TEST(RmsNorm, ResultsDoNotDependOnTheNumberOfThreads) {
  torch::manual_seed(4);
  const std::vector<Tensor> in = {torch::randn({900, 130}), torch::randn({130}), torch::randn({900, 130})};
  const int threads = torch::get_num_threads();
  torch::set_num_threads(1);
  const auto one = outputs_and_gradients(norm_op(true, true), in, true);
  torch::set_num_threads(3);
  const auto three = outputs_and_gradients(norm_op(true, true), in, true);
  torch::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(three[i])) << i;
}

TEST(RmsNorm, RefusesWrongShapes) {
  EXPECT_THROW(ops::rms_norm(torch::randn({2, 8}), torch::randn({7}), 1e-5), UsageError);
  EXPECT_THROW(ops::rms_norm(torch::randn({2, 8}), torch::randn({3, 8}), 1e-5), UsageError);
  EXPECT_THROW(ops::gated_rms_norm(torch::randn({2, 8}), torch::randn({2, 4}), torch::randn({8}), 1e-5, true),
               UsageError);
}

}  // namespace
}  // namespace seqloom
