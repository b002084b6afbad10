// seqloom-conformance DIR...: rebuilds each golden vector's component and compares outputs and gradients.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "conformance/case.h"
#include "io/atomic_file.h"

namespace {

using namespace seqloom;
using conformance::Result;
namespace fs = std::filesystem;

/// Every *.safetensors below the given folders (or the given files), sorted.
std::vector<std::string> case_files(const std::vector<std::string>& places) {
  std::vector<std::string> files;
  for (const auto& place : places) {
    if (fs::is_regular_file(place)) {
      files.push_back(place);
    } else if (fs::is_directory(place)) {
      for (const auto& entry : fs::recursive_directory_iterator(place)) {
        if (entry.is_regular_file() && entry.path().extension() == ".safetensors")
          files.push_back(entry.path().string());
      }
    } else {
      std::fprintf(stderr, "%s: no such folder: nothing to check there\n", place.c_str());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

const char* word(Result::Verdict verdict) {
  switch (verdict) {
    case Result::Verdict::kPass:
      return "pass";
    case Result::Verdict::kFail:
      return "FAIL";
    default:
      return "unsupported";
  }
}

struct Tally {
  int passed = 0, failed = 0, skipped = 0;
  Config results = Config::array();

  void add(const std::string& name, const Result& result) {
    (result.verdict == Result::Verdict::kPass ? passed : result.verdict == Result::Verdict::kFail ? failed : skipped)++;
    fmt::print("{} {}  {:.3g}{}\n", word(result.verdict), name, result.max_error,
               result.message.empty() ? "" : "  " + result.message);
    results.push_back({{"case", name},
                       {"result", word(result.verdict)},
                       {"max_error", result.max_error},
                       {"message", result.message}});
  }
};

Result check_file(const std::string& path, std::string& name, bool strict) {
  Result result;
  try {
    auto golden = conformance::load_case(path);
    name = golden.component + "/" + golden.name;
    result = conformance::check(golden);
  } catch (const std::exception& error) {
    result.verdict = Result::Verdict::kFail;
    result.message = error.what();
  }
  if (strict && result.verdict == Result::Verdict::kUnsupported) {
    result.verdict = Result::Verdict::kFail;
    result.message = "unsupported: " + result.message;
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Checks golden vectors (seqloom-case-1) against this engine.\n\n"
      "  seqloom-conformance tests/cases\n"
      "  seqloom-conformance --strict --json results.json tests/cases/mixer.gla");
  std::vector<std::string> places;
  std::string json;
  bool strict = false;
  app.add_option("DIR", places, "folders of cases, searched through, or single files")->required();
  app.add_flag("--strict", strict, "count unsupported cases as failed");
  app.add_option("--json", json, "write the results to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    Tally tally;
    for (const auto& path : case_files(places)) {
      std::string name = path;
      const Result result = check_file(path, name, strict);
      tally.add(name, result);
    }
    if (!json.empty()) {
      write_file_atomically(json, Config({{"passed", tally.passed},
                                          {"failed", tally.failed},
                                          {"skipped", tally.skipped},
                                          {"cases", tally.results}})
                                          .dump(1) +
                                      "\n");
    }
    fmt::print("{} passed, {} failed, {} skipped\n", tally.passed, tally.failed, tally.skipped);
    return tally.failed == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "seqloom-conformance: %s\n", error.what());
    return 1;
  }
}
