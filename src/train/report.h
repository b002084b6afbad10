#pragma once
#include <string>

#include "train/study.h"

namespace seqloom {

/// A study's result as one self-contained HTML page: the claim, a table of variants, curves. It loads nothing and runs
/// no script.
std::string report_html(const Study& study, const StudyResult& result);

}  // namespace seqloom
