#pragma once
#include <string>
#include <vector>

#include "train/study.h"

namespace seqloom {

/// A study that was run, for the page of claims.
struct RunStudy {
  Study study;
  StudyResult result;
  std::string file, out;  // the study's file, and the folder of its report
};

/// One Markdown page of what papers claim and what was measured: a line a check, with how to run it again.
std::string claims_markdown(const std::vector<RunStudy>& runs);

}  // namespace seqloom
