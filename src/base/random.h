#pragma once
#include <cstdint>

namespace seqloom {

/// A well mixed number from two (SplitMix64's finaliser, Steele et al. 2014): independent streams that are functions of
/// (seed, index), so that nothing has to be remembered to resume them.
constexpr uint64_t mixed(uint64_t seed, uint64_t index) {
  uint64_t z = seed + 0x9e3779b97f4a7c15ULL * (index + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

/// A small generator over that mixing, usable with <random>.
class Random {
 public:
  using result_type = uint64_t;
  explicit constexpr Random(uint64_t seed) : seed_(seed) {}
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~0ULL; }
  constexpr uint64_t operator()() { return mixed(seed_, next_++); }
  /// Uniform in [0, 1).
  constexpr double uniform() { return static_cast<double>((*this)() >> 11) * 0x1.0p-53; }
  /// Uniform in 0 .. n-1.
  constexpr int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

 private:
  uint64_t seed_, next_ = 0;
};

}  // namespace seqloom
