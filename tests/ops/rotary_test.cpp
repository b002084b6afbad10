#include "ops/rotary.h"

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

TestedOp rotary_op(const Tensor& angles, bool interleaved, bool transposed = false) {
  return [=](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    const Tensor x = transposed ? in[0].transpose(1, 2) : in[0];
    return {ops::rotary(x, angles.cos(), angles.sin(), interleaved)};
  };
}

TEST(Rotary, FusedEqualsTheReferenceForAnyShapeAndType) {
  torch::manual_seed(1);
  for (const bool interleaved : {false, true}) {
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      const double tolerance = type == torch::kFloat32 ? 1e-5 : 0.01;
      for (const int64_t width : {2, 6, 8, 34, 64, 100}) {
        SCOPED_TRACE(fmt::format("width {} interleaved {}", width, interleaved));
        const Tensor x = torch::randn({2, 3, 5, width}).to(type);
        expect_fused_equals_reference(rotary_op(torch::randn({5, width / 2}) * 3, interleaved), {x}, tolerance);
        expect_fused_equals_reference(rotary_op(torch::randn({2, 1, 5, (width + 2) / 4}), interleaved), {x}, tolerance);
        expect_fused_equals_reference(rotary_op(torch::randn({3, width / 2}), interleaved, true), {x}, tolerance);
      }
    }
  }
}

TEST(Rotary, TurnsThePairsItNames) {
  const Tensor x = torch::tensor({1.0f, 2.0f, 3.0f, 4.0f, 5.0f});
  const Tensor quarter =
      torch::tensor({0.0f, 1.0f});  // cos; the first pair stays, the second turns by minus 90 degrees
  const Tensor sin = torch::tensor({0.0f, -1.0f});
  for (const bool fused : {true, false}) {
    ops::set_fused_enabled(fused);
    const Tensor cos = 1 - quarter;
    EXPECT_TRUE(ops::rotary(x, cos, sin, false).equal(torch::tensor({1.0f, 4.0f, 3.0f, -2.0f, 5.0f})));
    EXPECT_TRUE(ops::rotary(x, cos, sin, true).equal(torch::tensor({1.0f, 2.0f, 4.0f, -3.0f, 5.0f})));
  }
  ops::set_fused_enabled(true);
}

TEST(Rotary, SecondDerivativesAndThoseOfTheAnglesAreTheReferences) {
  torch::manual_seed(2);
  const Tensor x = torch::randn({2, 4, 6});
  const auto squared = [](const TestedOp& op) {
    return [op](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {op(in)[0].pow(3)}; };
  };
  expect_same_second_derivatives(squared(rotary_op(torch::randn({4, 3}), false)), {x}, 1e-4);
  expect_fused_equals_reference(
      [](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        return {ops::rotary(in[0], in[1].cos(), in[1].sin(), true)};
      },
      {x, torch::randn({4, 3})}, 1e-5);
}

TEST(Rotary, RefusesWrongShapes) {
  const Tensor x = torch::randn({3, 6});
  EXPECT_THROW(ops::rotary(x, torch::randn({3, 4}), torch::randn({3, 4}), false), UsageError);
  EXPECT_THROW(ops::rotary(x, torch::randn({3, 3}), torch::randn({3, 2}), false), UsageError);
}

}  // namespace
}  // namespace seqloom
