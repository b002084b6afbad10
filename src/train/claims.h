#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "train/study.h"

namespace seqloom {

/// A study that was run, for the page of claims.
struct RunStudy {
  Study study;
  StudyResult result;
  std::string file, out;  // the study's file, and the folder of its report

  std::string stem() const { return std::filesystem::path(file).stem().string(); }  // its name
};

/// The folder beside the page of claims that holds STEM.svg of each study.
constexpr const char* kPictures = "img";

/// One Markdown page of what papers claim and what was measured: a line a check, with how to run it again.
std::string claims_markdown(const std::vector<RunStudy>& runs);

}  // namespace seqloom
