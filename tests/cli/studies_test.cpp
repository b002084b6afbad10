// Every study file of the project runs, for a few steps; whether its claim holds is for `make studies`.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <regex>

#include "io/toml.h"
#include "support/process.h"

namespace seqloom {
namespace {

std::vector<std::string> study_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(SEQLOOM_SOURCE_DIR "/studies")) {
    files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

class Studies : public InTemporaryFolder, public testing::WithParamInterface<std::string> {};

TEST_P(Studies, RunAFewSteps) {
  std::string smaller = "--set train.batch=2 ";
  if (load_toml(GetParam())["task"]["kind"] == "language") {
    write_text(path("text.txt"), read_text(SEQLOOM_SOURCE_DIR "/LICENSE"));
    smaller += fmt::format("--set task.data='\"{}\"' --set task.eval_tokens=64", path("text.txt"));
  } else {
    smaller += "--set task.eval_rows=2";
  }
  const Outcome outcome = seqloom(fmt::format("study {} --steps 2 {} --out {} --page {} --json", GetParam(), smaller,
                                              path("out"), path("claims.md")));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("\"judged\":false"), std::string::npos) << outcome.out;
  EXPECT_NE(read_text(path("claims.md")).find("not judged"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(path("out") + "/report.html"));
  const std::string picture = std::filesystem::path(GetParam()).stem().string() + ".svg";
  EXPECT_NE(read_text(path("claims.md")).find("(img/" + picture + ")"), std::string::npos);
  const std::string svg = read_text(path("img/" + picture));
  EXPECT_EQ(svg.rfind("<svg xmlns=", 0), 0U);
  EXPECT_LT(svg.size(), 60'000U);
}

TEST(Docs, EveryPictureOfAPageIsThere) {
  const std::filesystem::path docs = SEQLOOM_SOURCE_DIR "/docs";
  const std::regex picture(R"(!\[[^\]]*\]\(([^)]+)\))");
  int pictures = 0;
  for (const char* page : {"mixers.md", "performance.md"}) {
    const std::string text = read_text(docs / page);
    for (auto found = std::sregex_iterator(text.begin(), text.end(), picture); found != std::sregex_iterator();
         ++found) {
      EXPECT_TRUE(std::filesystem::exists(docs / (*found)[1].str())) << page << ": " << (*found)[1];
      ++pictures;
    }
  }
  EXPECT_GE(pictures, 8);
}

INSTANTIATE_TEST_SUITE_P(Files, Studies, testing::ValuesIn(study_files()),
                         [](const auto& info) { return std::filesystem::path(info.param).stem().string(); });

}  // namespace
}  // namespace seqloom
