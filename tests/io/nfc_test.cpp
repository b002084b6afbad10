// Unicode normalisation form C.
#include "io/nfc.h"

#include <gtest/gtest.h>

namespace seqloom {
namespace {

TEST(Nfc, ComposesWhatBelongsTogether) {
  EXPECT_EQ(to_nfc("plain é"), "plain é");
  EXPECT_EQ(to_nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(to_nfc("a\u0323\u0307"), "\u1ea1\u0307");
  EXPECT_EQ(to_nfc("a\u0307\u0323"), "\u1ea1\u0307");       // marks are put in order first
  EXPECT_EQ(to_nfc("a\u0301\u0301"), "\u00e1\u0301");       // the second is blocked by nothing but finds no partner
  EXPECT_EQ(to_nfc("\u1100\u1161\u11a8"), "\uac01");        // Hangul
  EXPECT_EQ(to_nfc("\uac00\u11a7"), "\uac00\u11a7");        // no tail
  EXPECT_EQ(to_nfc("\u212b\u2126"), "\u00c5\u03a9");        // singletons
  EXPECT_EQ(to_nfc("\u0958"), "\u0915\u093c");              // excluded from composition
  EXPECT_EQ(to_nfc("\u0301e"), "\u0301e");                  // no starter before the mark
  EXPECT_EQ(to_nfc("\U000110a5\U000110ba"), "\U000110ab");  // beyond the basic plane
}

TEST(Nfc, LeavesInvalidBytes) {
  EXPECT_EQ(to_nfc("e\xff\u0301 e\u0301\xe4"), "e\xff\u0301 \u00e9\xe4");
}

TEST(Nfc, LongRunsOfMarksTakeNLogN) {
  std::string marks = "a";
  for (int i = 0; i < 200'000; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0323";
  EXPECT_EQ(to_nfc(marks).substr(0, 3), "\u1ea1");
}

}  // namespace
}  // namespace seqloom
