#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/torch.h"

namespace seqloom::huggingface {

using torch::Tensor;

/// What tensor of theirs is made of which of ours, for both directions: their rows are those of ours one below the
/// other. In a family's list "#" stands for a layer's number and "*" for the end of a name, the same in all names.
struct Correspondence {
  std::string theirs;
  std::vector<std::string> ours;
  bool transposed = false;  // theirs is stored [in, out]
};

using Shapes = std::map<std::string, std::vector<int64_t>>;
Shapes shapes_of(const torch::nn::Module& module);

/// A family's list for a module with these parameters. Throws Error when it leaves one of them out.
std::vector<Correspondence> written_out(const std::vector<Correspondence>& family, const Shapes& ours);

/// The shape of theirs.
std::vector<int64_t> shape_of(const Correspondence& c, const Shapes& ours);
/// Views of theirs, one for each of ours.
std::vector<Tensor> parts_of(const Correspondence& c, const Tensor& theirs, const Shapes& ours);
/// Theirs, from ours by name. A copy where it is not one of ours as it is.
Tensor joined(const Correspondence& c, const std::map<std::string, Tensor>& ours);

/// Tensors on disk or elsewhere, read one at a time.
struct TensorSource {
  std::string name;  // for messages
  Shapes shapes;
  std::function<Tensor(const std::string&)> load;
};

/// A family's own spelling of a name on disk, which may differ by a prefix; "" for what is not part of the model.
using Spelling = std::function<std::string(const std::string&)>;

/// Copies theirs into the module's parameters. Returns the names of tensors that nothing was made of. Throws Error that
/// lists every missing and every misshapen tensor, with both shapes.
std::vector<std::string> fill(torch::nn::Module& module, const std::vector<Correspondence>& family,
                              const Spelling& spelling, const TensorSource& source);

}  // namespace seqloom::huggingface
