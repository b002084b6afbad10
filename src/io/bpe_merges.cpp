#include "io/bpe_merges.h"

#include <queue>
#include <tuple>

namespace seqloom {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// A symbol of the word in a doubly linked list; -1 stands for none.
struct Symbol {
  int32_t id;
  int64_t previous, next;
};

/// A merge of the symbol at `place` with its next one, as they were when it was found.
struct Candidate {
  int32_t rank;
  int64_t place;
  int32_t left, right, result;
  bool operator>(const Candidate& other) const { return std::tie(rank, place) > std::tie(other.rank, other.place); }
};

}  // namespace

void BpeMerges::add(int32_t left, int32_t right, int32_t rank, int32_t result) {
  merges_.insert_or_assign(pair_key(left, right), Merge{rank, result});
}

const BpeMerges::Merge* BpeMerges::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeMerges::apply(std::vector<int32_t>& word) const {
  if (word.size() < 2) return;
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const int32_t id : word) {
    const auto here = static_cast<int64_t>(symbols.size());
    symbols.push_back({id, here - 1, here + 1});
  }
  symbols.back().next = -1;
  // A queue by (rank, place) makes a long word n log n where looking for the best pair each time is quadratic.
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](int64_t place) {
    if (place < 0 || symbols[place].next < 0) return;
    const int32_t left = symbols[place].id, right = symbols[symbols[place].next].id;
    if (const Merge* merge = find(left, right)) queue.push({merge->rank, place, left, right, merge->result});
  };
  for (int64_t place = 0; place < static_cast<int64_t>(symbols.size()); ++place) consider(place);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.place];
    const int64_t gone = left.next;
    if (left.id != best.left || gone < 0 || symbols[gone].id != best.right) continue;  // merged otherwise since
    left.id = best.result;
    left.next = symbols[gone].next;
    symbols[gone].id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.place;
    consider(left.previous);
    consider(best.place);
  }
  word.clear();
  for (int64_t place = 0; place >= 0; place = symbols[place].next) word.push_back(symbols[place].id);
}

}  // namespace seqloom
