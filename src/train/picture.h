#pragma once

#include <string>

#include "train/study.h"

namespace seqloom {

/// A study's result as one small SVG file, for pages: the curves of its metrics over N or, where it has none, bars of
/// what the claim is about, and the training loss.
std::string picture_svg(const Study& study, const StudyResult& result);

}  // namespace seqloom
