#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace seqloom {

/// The merges of byte pair encoding: which neighbours become one token, and in which order.
class BpeMerges {
 public:
  /// `left` and `right` merge into `result`; lower ranks go first. The last entry for a pair counts.
  void add(int32_t left, int32_t right, int32_t rank, int32_t result);

  /// Merges the symbols of one word until no pair is left, in O(n log n).
  void apply(std::vector<int32_t>& word) const;

 private:
  struct Merge {
    int32_t rank, result;
  };
  const Merge* find(int32_t left, int32_t right) const;

  std::unordered_map<uint64_t, Merge> merges_;  // by (left, right)
};

}  // namespace seqloom
