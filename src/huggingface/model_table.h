#pragma once
#include <string>
#include <vector>

#include "base/fields.h"
#include "huggingface/correspondence.h"

namespace seqloom::huggingface {

/// A [model] table with every option written out and its layers one by one.
struct ModelTable {
  Config options;                        // of the stack
  std::vector<Config> mixers, channels;  // a layer's, each with its kind
  Shapes shapes;                         // of the parameters; empty for a model that was not built
  Config task;                           // [task]

  const Config& mixer() const { return mixers.front(); }
  const Config& channel() const { return channels.front(); }
  int64_t layers() const { return static_cast<int64_t>(mixers.size()); }
  /// A size of a parameter's shape.
  int64_t size(const std::string& parameter, size_t dim) const { return shapes.at(parameter).at(dim); }
  bool has(const std::string& parameter) const { return shapes.count(parameter) > 0; }
};

/// `task_kind` tells a Decoder's table ("language") from an Encoder's ("sentence_embedding"). Throws UsageError for a
/// wrong table.
ModelTable write_out(const Config& model, const std::string& task_kind, const std::string& where);

/// What the first says otherwise than the second, one line each: "layers.0.mixer.window = 8 (it would be none)".
/// Options that only initialise, that change the speed alone, or that parameters' shapes show, do not count.
std::vector<std::string> differences(const ModelTable& model, const ModelTable& other);

/// A list of layers in which equal neighbours are one entry with `repeat`.
Config layer_list(const std::vector<Config>& layers);

}  // namespace seqloom::huggingface
