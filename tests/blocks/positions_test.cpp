#include "blocks/positions.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace seqloom {
namespace {

using torch::Tensor;

void expect_close(const Tensor& got, const Tensor& want, double tolerance = 1e-5) {
  ASSERT_EQ(got.sizes(), want.sizes());
  EXPECT_LE((got.to(torch::kFloat64) - want.to(torch::kFloat64)).abs().max().item<double>(), tolerance);
}

/// Rotates pair (a, b) of every [b, h, t, :] by position * frequency(m), one number at a time.
Tensor naive_rope(const Tensor& x, const Tensor& positions, int64_t rotary, bool half, double base, double factor) {
  Tensor y = x.to(torch::kFloat64).clone();
  for (int64_t t = 0; t < x.size(2); ++t) {
    for (int64_t m = 0; m < rotary / 2; ++m) {
      const double position = positions[t].item<double>() / factor;
      const double angle = position * std::pow(base, -2.0 * static_cast<double>(m) / static_cast<double>(rotary));
      const int64_t first = half ? m : 2 * m, second = half ? m + rotary / 2 : 2 * m + 1;
      const Tensor a = x.select(2, t).select(2, first).to(torch::kFloat64);
      const Tensor b = x.select(2, t).select(2, second).to(torch::kFloat64);
      y.select(2, t).select(2, first).copy_(a * std::cos(angle) - b * std::sin(angle));
      y.select(2, t).select(2, second).copy_(b * std::cos(angle) + a * std::sin(angle));
    }
  }
  return y;
}

TEST(Rope, TurnsPairsByTheirFormula) {
  torch::manual_seed(1);
  const Tensor x = torch::randn({2, 3, 7, 10}), at = torch::arange(5, 12);
  for (const bool half : {true, false}) {
    for (const int64_t rotary : {10, 6, 2}) {
      RopeOptions options;
      options.base = 500;
      options.layout = half ? "half" : "interleaved";
      options.rotary_dim = rotary;
      expect_close(rope(x, at, options), naive_rope(x, at, rotary, half, 500, 1));
      options.scaling = "linear";
      options.factor = 4;
      expect_close(rope(x, at, options), naive_rope(x, at, rotary, half, 500, 4));
    }
  }
}

TEST(Rope, TakesPositionsPerRowAndRealOnes) {
  const Tensor x = torch::randn({2, 3, 4, 8});
  const Tensor at = torch::tensor({{0.0, 1.5, 2.0, 9.0}, {3.0, 4.0, 5.25, 6.0}});
  const Tensor y = rope(x, at, {});
  for (int64_t row = 0; row < 2; ++row) expect_close(y[row], rope(x, at[row], {})[row]);
}

TEST(Rope, ScoresDependOnTheDistanceAloneHoweverFarAway) {
  const Tensor q = torch::randn({1, 1, 1, 64}), k = torch::randn({1, 1, 1, 64});
  const auto score = [&](int64_t i, int64_t j) {
    return (rope(q, torch::tensor({i}), {}) * rope(k, torch::tensor({j}), {})).sum().item<double>();
  };
  EXPECT_NEAR(score(12, 5), score(3000012, 3000005), 1e-4);
}

TEST(Rope, Llama3KeepsShortWavelengthsStretchesLongOnesAndBlends) {
  RopeOptions options;
  options.base = 500000;
  options.scaling = "llama3";
  options.factor = 8;
  options.original_max_position = 64;
  const Tensor scaled = rope_frequencies(12, options);
  RopeOptions plain = options;
  plain.scaling = "none";
  const Tensor unscaled = rope_frequencies(12, plain);
  for (int64_t m = 0; m < 6; ++m) {
    const double f = unscaled[m].item<double>(), wavelength = 2 * M_PI / f;
    const double s = (64 / wavelength - 1) / (4.0 - 1);
    const double want = wavelength < 16 ? f : wavelength > 64 ? f / 8 : (1 - s) * f / 8 + s * f;
    EXPECT_NEAR(scaled[m].item<double>(), want, 1e-12) << m;
  }
  options.high_freq_factor = 1;
  EXPECT_THROW(rope_frequencies(12, options), UsageError);
}

TEST(Rope, RefusesWhatCannotBePaired) {
  const Tensor at = torch::arange(3);
  EXPECT_THROW(rope(torch::randn({1, 1, 3, 7}), at, {}), UsageError);
  RopeOptions options;
  options.rotary_dim = 3;
  EXPECT_THROW(rope(torch::randn({1, 1, 3, 8}), at, options), UsageError);
  options.rotary_dim = 10;
  EXPECT_THROW(rope(torch::randn({1, 1, 3, 8}), at, options), UsageError);
  options.rotary_dim = 4;
  options.scaling = "yarn";
  EXPECT_THROW(rope(torch::randn({1, 1, 3, 8}), at, options), UsageError);
}

TEST(Alibi, SlopesOfPowersOfTwoAndOfOtherHeadCounts) {
  expect_close(alibi_slopes(4), torch::tensor({0.25, 0.0625, 0.015625, 0.00390625}), 1e-9);
  expect_close(alibi_slopes(6), torch::tensor({0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125}), 1e-9);
  expect_close(alibi_slopes(1), torch::tensor({0.00390625}), 1e-9);
  const Tensor twelve = alibi_slopes(12);
  for (int64_t h = 0; h < 8; ++h) EXPECT_NEAR(twelve[h].item<double>(), std::pow(2.0, -(h + 1)), 1e-7);
  for (int64_t h = 0; h < 4; ++h) EXPECT_NEAR(twelve[8 + h].item<double>(), std::pow(2.0, -0.5 - h), 1e-7);
  EXPECT_THROW(alibi_slopes(0), UsageError);
}

TEST(Alibi, BiasFallsWithTheDistance) {
  const Tensor bias = alibi_bias(alibi_slopes(4), torch::tensor({{-3, 0, 2}}));
  expect_close(bias.select(1, 0)[1], torch::tensor({-0.1875, 0.0, -0.125}), 1e-9);
}

/// The bucket of one relative position in double precision.
int64_t naive_bucket(int64_t relative, bool bidirectional, int64_t buckets, int64_t max_distance) {
  const int64_t side = bidirectional ? buckets / 2 : buckets, exact = side / 2;
  const int64_t base = bidirectional && relative > 0 ? side : 0;
  const int64_t n = bidirectional ? std::abs(relative) : std::max<int64_t>(-relative, 0);
  if (n < exact) return base + n;
  const double fraction = std::log(double(n) / double(exact)) / std::log(double(max_distance) / double(exact));
  return base + std::min(exact + static_cast<int64_t>(fraction * double(side - exact) + 1e-9), side - 1);
}

TEST(T5Bias, Buckets) {
  // max_distance / exact is no power that would make a boundary an integer, where float32 decides
  const Tensor relative = torch::arange(-200, 201);
  for (const bool bidirectional : {true, false}) {
    for (const auto& [buckets, farthest] : {std::pair<int64_t, int64_t>{32, 133}, {8, 21}, {10, 50}}) {
      const Tensor got = t5_bucket(relative, bidirectional, buckets, farthest);
      for (int64_t i = 0; i < 401; ++i) {
        EXPECT_EQ(got[i].item<int64_t>(), naive_bucket(i - 200, bidirectional, buckets, farthest)) << i - 200;
      }
    }
  }
  EXPECT_EQ(t5_bucket(torch::tensor({int64_t{-1} << 40}), false, 32, 128).item<int64_t>(), 31);
}

TEST(T5Bias, RefusesBucketsThatCannotBeCut) {
  const Tensor relative = torch::arange(3);
  EXPECT_THROW(t5_bucket(relative, true, 7, 128), UsageError);
  EXPECT_THROW(t5_bucket(relative, false, 32, 16), UsageError);
  EXPECT_THROW(t5_bucket(relative, true, 2, 16), UsageError);
  EXPECT_NO_THROW(t5_bucket(relative, false, 7, 128));
}

TEST(Sinusoidal, BothLayouts) {
  const Tensor at = torch::arange(3, 8);
  const Tensor interleaved = sinusoidal_at(at, 6), half = sinusoidal_at(at, 6, "half");
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t m = 0; m < 3; ++m) {
      const double angle = double(3 + t) * std::exp(-std::log(1e4) * 2 * double(m) / 6);
      EXPECT_NEAR(interleaved[t][2 * m].item<double>(), std::sin(angle), 1e-6);
      EXPECT_NEAR(interleaved[t][2 * m + 1].item<double>(), std::cos(angle), 1e-6);
      EXPECT_NEAR(half[t][m].item<double>(), std::sin(angle), 1e-6);
      EXPECT_NEAR(half[t][3 + m].item<double>(), std::cos(angle), 1e-6);
    }
  }
  EXPECT_THROW(sinusoidal_at(at, 5), UsageError);
}

TEST(Learned, RowsOfTheTableAndNoOthers) {
  const Tensor table = torch::randn({6, 4});
  expect_close(learned_at(table, torch::tensor({{5, 0}, {2, 2}}))[0][0], table[5], 0);
  EXPECT_THROW(learned_at(table, torch::tensor({0, 6})), UsageError);
  EXPECT_THROW(learned_at(table, torch::tensor({-1})), UsageError);
  EXPECT_THROW(learned_at(table, torch::tensor({1.0})), UsageError);
}

TEST(Carope, IncrementsArePowersOfABoundedFrequency) {
  const Tensor u = torch::randn({2, 5, 6}), weight = torch::randn({3, 6}), bias = torch::randn({3});
  const Tensor got = carope_increments(u, weight, bias, 8, 1);
  ASSERT_EQ(got.sizes(), (std::vector<int64_t>{2, 3, 5, 4}));
  const Tensor f = 1 / (torch::softplus(torch::matmul(u, weight.t()) + bias) + 1);
  for (int64_t i = 0; i < 4; ++i) expect_close(got.select(3, i), f.transpose(1, 2).pow(double(1 + i)), 1e-5);
  EXPECT_EQ(carope_increments(u, weight, std::nullopt, 8, 0).select(3, 0).min().item<double>(), 1);
  EXPECT_TRUE(carope_increments(u * 1e4, weight, bias, 8, 0).isfinite().all().item<bool>());
  EXPECT_THROW(carope_increments(u, weight, bias, 7, 0), UsageError);
}

TEST(Carope, WithZeroWeightsAndTheInitialBiasItIsRope) {
  const int64_t width = 8;
  const Tensor q = torch::randn({2, 3, 11, width});
  const double bias = std::log(std::expm1(std::pow(10000.0, 2.0 / width) - 1));
  const Tensor phases =
      carope_increments(torch::randn({2, 11, 5}), torch::zeros({3, 5}), torch::full({3}, bias), width, 0).cumsum(2);
  expect_close(rotate(q, phases, "half"), rope(q, torch::arange(1, 12), {}), 2e-5);
}

}  // namespace
}  // namespace seqloom
