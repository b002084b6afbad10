// A layer may include only itself and the layers below it (docs/design.md).
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>

namespace {

namespace fs = std::filesystem;

/// The height of each layer; layers of one height may not include each other unless they are listed as siblings.
const std::map<std::string, int> kHeight = {
    {"base", 0},  {"io", 1},     {"ops", 2},   {"memory", 3},      {"mixers", 4}, {"blocks", 4}, {"models", 5},
    {"train", 6}, {"decode", 6}, {"tasks", 7}, {"huggingface", 7}, {"serve", 8},  {"cli", 9}};

bool may_include(const std::string& from, const std::string& to) {
  const bool siblings = kHeight.at(from) == kHeight.at(to) && kHeight.at(from) == 4;  // mixers and blocks
  return from == to || siblings || kHeight.at(to) < kHeight.at(from);
}

/// Includes of other layers that `text`, a file of layer `from`, must not have.
std::vector<std::string> forbidden_includes(const std::string& from, const std::string& text) {
  std::vector<std::string> found;
  const std::regex include("#include \"([a-z_]+)/[^\"]*\"");
  for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it) {
    const std::string to = (*it)[1];
    if (kHeight.count(to) == 0 || !may_include(from, to)) found.push_back((*it)[0]);
  }
  return found;
}

TEST(IncludeRule, NoLayerIncludesAHigherOne) {
  const fs::path source = fs::path(SEQLOOM_SOURCE_DIR) / "src";
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(source)) {
    if (!entry.is_regular_file()) continue;
    const std::string layer = fs::relative(entry.path(), source).begin()->string();
    ASSERT_EQ(kHeight.count(layer), 1U) << "src/" << layer << " is not a layer of the design";
    std::ifstream file(entry.path());
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    for (const auto& include : forbidden_includes(layer, text)) {
      ADD_FAILURE() << entry.path().string() << ": " << include << " is not below " << layer;
    }
    ++files;
  }
  EXPECT_GT(files, 20);
}

TEST(IncludeRule, CatchesAViolation) {
  EXPECT_EQ(forbidden_includes("ops", "#include \"mixers/mixer.h\"\n#include \"base/error.h\"\n").size(), 1U);
  EXPECT_EQ(forbidden_includes("train", "#include \"decode/session.h\"\n").size(), 1U);
  EXPECT_TRUE(forbidden_includes("mixers", "#include \"blocks/norm.h\"\n#include \"ops/rms_norm.h\"\n").empty());
}

}  // namespace
