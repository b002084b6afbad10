// The fused affine scan against the reference; the reference against its definition is in linear_recurrences_test.
#include "ops/affine_scan.h"

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

std::vector<Tensor> packed_scan(const std::vector<Tensor>& in, const std::optional<Tensor>& cu_seqlens) {
  const auto state = in[2].defined() ? std::make_optional(in[2]) : std::nullopt;
  const auto [h, last] = ops::affine_scan(in[0], in[1], state, cu_seqlens);
  return {h, last};
}
std::vector<Tensor> scan(const std::vector<Tensor>& in) {
  return packed_scan(in, {});
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

TEST(FusedAffineScan, PackedSequencesAreThoseAlone) {
  torch::manual_seed(5);
  const Tensor cu_seqlens = torch::tensor({0, 33, 33, 34, 36, 90}, torch::kInt32);
  const auto packed = [&](const std::vector<Tensor>& in) { return packed_scan(in, cu_seqlens); };
  const auto alone = [&](const std::vector<Tensor>& in) {
    std::vector<Tensor> h, last;
    for (int64_t s = 0; s < 5; ++s) {
      const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
      const Tensor before = in[2].narrow(0, s, 1);
      if (size == 0) {
        last.push_back(before);
        continue;
      }
      const auto own = scan({in[0].narrow(1, begin, size), in[1].narrow(1, begin, size), before});
      h.push_back(own[0]);
      last.push_back(own[1]);
    }
    return std::vector<Tensor>{torch::cat(h, 1), torch::cat(last, 0)};
  };
  for (const int64_t width : {5, 150}) {
    const std::vector<Tensor> in = {factors({1, 90, width}), torch::randn({1, 90, width}), torch::randn({5, width})};
    expect_all_near(outputs_and_gradients(packed, in, false), outputs_and_gradients(alone, in, false), 1e-6, "each");
    expect_fused_equals_reference(packed, in, 2e-5);
    expect_fused_equals_reference(packed, {in[0].to(torch::kBFloat16), in[1].to(torch::kBFloat16), in[2]}, 0.03);
    expect_fused_equals_reference(
        [&](const std::vector<Tensor>& pairs) {
          std::vector<Tensor> complex;
          for (const Tensor& t : pairs) complex.push_back(torch::view_as_complex(t));
          const auto out = packed_scan(complex, cu_seqlens);
          return std::vector<Tensor>{torch::view_as_real(out[0]), torch::view_as_real(out[1])};
        },
        {torch::randn({1, 90, width, 2}) * 0.6, torch::randn({1, 90, width, 2}), torch::randn({5, width, 2})}, 2e-5);
  }
  expect_same_second_derivatives(
      [](const std::vector<Tensor>& in) {
        return packed_scan(in, torch::tensor({0, 4, 4, 6}));
      },
      {factors({1, 6, 5}), torch::randn({1, 6, 5}), torch::randn({3, 5})}, 1e-4);
}

TEST(FusedAffineScan, ANaNStaysInItsSequence) {
  Tensor a = torch::full({1, 60, 20}, 0.5), b = torch::ones({1, 60, 20});
  b[0][7].fill_(NAN);
  for (const bool fused : {true, false}) {
    ops::set_fused_enabled(fused);
    EXPECT_EQ(packed_scan({a, b, Tensor()}, torch::tensor({0, 5, 30, 60}))[0].isnan().sum().item<int64_t>(), 20 * 23);
  }
  ops::set_fused_enabled(true);
}

TEST(FusedAffineScan, RefusesWrongPackedSequences) {
  const Tensor a = torch::rand({1, 6, 3}), two = torch::rand({2, 6, 3});
  EXPECT_THROW(ops::affine_scan(two, two, {}, torch::tensor({0, 6})), UsageError);
  EXPECT_THROW(ops::affine_scan(a, a, {}, torch::tensor({0, 5})), UsageError);
  EXPECT_THROW(ops::affine_scan(a, a, torch::rand({1, 3}), torch::tensor({0, 2, 6})), UsageError);
}

}  // namespace
}  // namespace seqloom
