#pragma once
#include <map>
#include <string>

#include "base/fields.h"

namespace seqloom::huggingface {

/// What a folder of sentence-transformers says beside the encoder (modules.json, 1_Pooling/config.json,
/// sentence_bert_config.json): { pooling, normalize, max_length } of a [task]. Without these files: the mean of the
/// last layer, not normalised, of at most `longest` tokens. Throws Error for modules and poolings that are not
/// supported.
Config read_sentence_files(const std::string& folder, int64_t longest);

/// These files for such a [task], by their path in the folder.
std::map<std::string, std::string> write_sentence_files(const Config& task, int64_t width);

}  // namespace seqloom::huggingface
