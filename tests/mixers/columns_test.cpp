// Packed rows as columns: each has its own window, and looks ahead into zeros of its own.
#include "mixers/columns.h"

#include <gtest/gtest.h>

namespace seqloom {
namespace {

using torch::Tensor;

const std::vector<int64_t> kCuts = {0, 5, 5, 6, 8, 17};

struct PackedColumns : testing::Test {
  Layout layout = Layout::packed(torch::tensor(kCuts));
  Tensor x = torch::randn({1, 17, 3});
  Columns columns{layout, x};

  Tensor row(int64_t r) const { return x.slice(1, kCuts[r], kCuts[r + 1]); }
};

TEST_F(PackedColumns, EachRowHasAWindowBehindIt) {
  for (const int64_t n : {0, 1, 3, 20}) {
    const Tensor earlier = torch::randn({5, n, 3}), windows = columns.slid(earlier, x);
    for (int64_t r = 0; r < 5; ++r) {
      const Tensor all = torch::cat({earlier.narrow(0, r, 1), row(r)}, 1);
      EXPECT_TRUE(windows.narrow(0, r, 1).equal(all.narrow(1, all.size(1) - n, n))) << n << ", row " << r;
    }
  }
}

TEST_F(PackedColumns, RowsAreSpreadAndSeenFromBehind) {
  const auto rows = columns.spread(x, 4);
  EXPECT_TRUE(rows.x.index_select(1, rows.place).equal(x));
  EXPECT_EQ(rows.x.size(1), 17 + 5 * 4);
  EXPECT_EQ(rows.x.ne(0).sum().item<int64_t>(), x.ne(0).sum().item<int64_t>());
  EXPECT_TRUE(rows.layout.offsets().diff().equal(layout.offsets().diff() + 4));

  // the token before, two tokens further on, is the next token
  const Tensor next = columns.ahead(x, 2, [](const Tensor& longer, const Layout&) { return longer.roll(1, 1); });
  for (int64_t r = 0; r < 5; ++r) {
    const Tensor want = torch::constant_pad_nd(row(r), {0, 0, 0, 1}).slice(1, 1);
    EXPECT_TRUE(next.slice(1, kCuts[r], kCuts[r + 1]).equal(want)) << "row " << r;
  }
}

TEST_F(PackedColumns, PlacesAndCountsAreThoseOfRows) {
  EXPECT_TRUE(columns.counts().equal(torch::tensor({5, 0, 1, 2, 9})));
  EXPECT_TRUE(columns.place()[0].equal(torch::tensor({0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8})));
}

}  // namespace
}  // namespace seqloom
