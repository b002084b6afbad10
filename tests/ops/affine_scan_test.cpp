// The fused affine scan against the reference; the reference against its definition is in linear_recurrences_test.
#include "ops/affine_scan.h"

#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

std::vector<Tensor> scan(const std::vector<Tensor>& in) {
  const auto [h, last] = ops::affine_scan(in[0], in[1], in[2].defined() ? std::make_optional(in[2]) : std::nullopt);
  return {h, last};
}

/// The same for complex numbers given as pairs.
std::vector<Tensor> complex_scan(const std::vector<Tensor>& in) {
  const auto complex = [](const Tensor& t) { return torch::view_as_complex(t); };
  const auto [h, last] = ops::affine_scan(complex(in[0]), complex(in[1]),
                                          in[2].defined() ? std::make_optional(complex(in[2])) : std::nullopt);
  return {torch::view_as_real(h), torch::view_as_real(last)};
}

/// Factors of any sign, some of them 0.
Tensor factors(const std::vector<int64_t>& shape) {
  const Tensor a = torch::rand(shape) * 2.2 - 1.1;
  return torch::where(torch::rand(shape) < 0.1, torch::zeros({}), a);
}

TEST(FusedAffineScan, EqualsTheReferenceForAnyShapeAndType) {
  torch::manual_seed(1);
  for (const auto& [shape, with_state] : std::vector<std::pair<std::vector<int64_t>, bool>>{
           {{2, 1, 5}, true}, {{3, 17}, true}, {{1, 40, 37}, false}, {{2, 33, 4, 20}, true}, {{1, 9, 300}, true}}) {
    SCOPED_TRACE(shape.back());
    auto state_shape = shape;
    state_shape.erase(state_shape.begin() + 1);
    const Tensor a = factors(shape), b = torch::randn(shape);
    const Tensor state = with_state ? torch::randn(state_shape) : Tensor();
    expect_fused_equals_reference(scan, {a, b, state}, 2e-5);
    expect_fused_equals_reference(scan, {a.to(torch::kBFloat16), b.to(torch::kBFloat16), state}, 0.03);
    for (auto* sizes : {&state_shape}) sizes->push_back(2);
    auto pairs = shape;
    pairs.push_back(2);
    expect_fused_equals_reference(
        complex_scan,
        {torch::randn(pairs) * 0.6, torch::randn(pairs), with_state ? torch::randn(state_shape) : Tensor()}, 2e-5);
  }
}

TEST(FusedAffineScan, ReadsTransposedInputs) {
  torch::manual_seed(2);
  expect_fused_equals_reference(
      [](const std::vector<Tensor>& in) {
        return scan({in[0].transpose(1, 2), in[1].transpose(1, 2), in[2]});
      },
      {factors({2, 11, 20}), torch::randn({2, 11, 20}), torch::randn({2, 11})}, 2e-5);
}

TEST(FusedAffineScan, KeepsExtremesInTheirChannel) {
  Tensor a = torch::full({1, 30, 20}, 0.5), b = torch::ones({1, 30, 20});
  a.select(2, 3).fill_(1e-30);
  a.select(2, 4).fill_(3.0);
  b.select(2, 5).fill_(1e38);
  b[0][7][6] = NAN;
  ops::set_fused_enabled(false);
  const Tensor want = scan({a, b, Tensor()})[0];
  ops::set_fused_enabled(true);
  on_every_target([&] {
    const Tensor got = scan({a, b, Tensor()})[0];
    EXPECT_TRUE(torch::allclose(got, want, 1e-5, 0, /*equal_nan=*/true));
    EXPECT_EQ(got.isnan().sum().item<int64_t>(), 23);
  });
}

TEST(FusedAffineScan, SecondDerivativesAreThoseOfTheReference) {
  torch::manual_seed(3);
  expect_same_second_derivatives(scan, {factors({2, 6, 5}), torch::randn({2, 6, 5}), torch::randn({2, 5})}, 1e-4);
}

TEST(FusedAffineScan, ResultsDoNotDependOnTheNumberOfThreads) {
  torch::manual_seed(4);
  const std::vector<Tensor> in = {factors({1, 50, 500}), torch::randn({1, 50, 500}), torch::randn({1, 500})};
  const int threads = torch::get_num_threads();
  torch::set_num_threads(1);
  const auto one = outputs_and_gradients(scan, in, true);
  torch::set_num_threads(3);
  const auto three = outputs_and_gradients(scan, in, true);
  torch::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(three[i])) << i;
}

}  // namespace
}  // namespace seqloom
