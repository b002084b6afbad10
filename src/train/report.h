#pragma once
#include <string>

#include "train/study.h"

namespace seqloom {

/// A study's result as one self-contained HTML page: the claim, a table of variants, curves, mixing matrices, recipes.
/// It loads nothing and runs no script; every text of the study is escaped.
std::string report_html(const Study& study, const StudyResult& result);

/// Writes results.json and report.html into the folder `out`, each whole or not at all. Throws Error naming the file.
void write_report(const Study& study, const StudyResult& result, const std::string& out);

/// "812 B", "16.5 KiB", "1.2 MiB".
std::string bytes_text(int64_t bytes);

}  // namespace seqloom
