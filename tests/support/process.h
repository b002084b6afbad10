#pragma once
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace seqloom {

/// What a command printed and how it ended.
struct Outcome {
  int status = -1;  // exit status, 128 + signal when killed
  std::string out, err;
};

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A folder of its own for each test, removed afterwards.
class InTemporaryFolder : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder = std::filesystem::temp_directory_path() /
             ("seqloom_" + std::string(info->test_suite_name()) + "_" + info->name() + "_" + std::to_string(getpid()));
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  std::string path(const std::string& name) const { return (folder / name).string(); }

  /// Runs a shell command.
  Outcome run(const std::string& command) const {
    const std::string to = path("stdout"), errors = path("stderr");
    const int status = std::system(("(" + command + ") >" + to + " 2>" + errors).c_str());
    Outcome outcome;
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = read_text(to);
    outcome.err = read_text(errors);
    return outcome;
  }

  /// Runs the built seqloom binary.
  Outcome seqloom(const std::string& arguments) const {
    return run(std::string(SEQLOOM_BINARY_DIR) + "/seqloom " + arguments);
  }

  std::filesystem::path folder;
};

}  // namespace seqloom
