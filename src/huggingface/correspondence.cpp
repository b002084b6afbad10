#include "huggingface/correspondence.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"

namespace seqloom::huggingface {
namespace {

/// What "#" and "*" of a pattern stand for in a name; `star` must be last.
struct Captured {
  std::string number, rest;
};

std::optional<Captured> match(std::string_view pattern, std::string_view name) {
  Captured captured;
  while (!pattern.empty()) {
    if (pattern.front() == '*') {
      captured.rest = name;
      return captured;
    }
    if (pattern.front() == '#') {
      const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
      if (digits == 0) return std::nullopt;
      captured.number = name.substr(0, digits);
      name.remove_prefix(digits);
    } else {
      if (name.empty() || name.front() != pattern.front()) return std::nullopt;
      name.remove_prefix(1);
    }
    pattern.remove_prefix(1);
  }
  return name.empty() ? std::make_optional(captured) : std::nullopt;
}

std::string filled_in(const std::string& pattern, const Captured& captured) {
  std::string name;
  for (const char c : pattern) {
    if (c == '#') name += captured.number;
    if (c == '*') name += captured.rest;
    if (c != '#' && c != '*') name += c;
  }
  return name;
}

int64_t rows(const std::string& ours, const Shapes& shapes) {
  return shapes.at(ours).front();
}

std::string written(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// Names on disk by their family's spelling.
std::map<std::string, std::string> spelled(const TensorSource& source, const Spelling& spelling) {
  std::map<std::string, std::string> names;
  for (const auto& [name, shape] : source.shapes) {
    const std::string known = spelling(name);
    if (!known.empty() && !names.emplace(known, name).second) {
      fail("{}: both '{}' and '{}' are {}", source.name, names[known], name, known);
    }
  }
  return names;
}

}  // namespace

Shapes shapes_of(const torch::nn::Module& module) {
  Shapes shapes;
  for (const auto& parameter : module.named_parameters()) shapes[parameter.key()] = parameter.value().sizes().vec();
  return shapes;
}

std::vector<Correspondence> written_out(const std::vector<Correspondence>& family, const Shapes& ours) {
  std::vector<Correspondence> all;
  std::set<std::string> covered;
  for (const auto& [name, shape] : ours) {
    for (const auto& pattern : family) {
      const auto captured = match(pattern.ours.front(), name);
      if (!captured || covered.count(name) > 0) continue;
      Correspondence c{filled_in(pattern.theirs, *captured), {}, pattern.transposed && shape.size() == 2};
      for (const auto& part : pattern.ours) c.ours.push_back(filled_in(part, *captured));
      covered.insert(c.ours.begin(), c.ours.end());
      all.push_back(std::move(c));
    }
  }
  for (const auto& [name, shape] : ours) {
    if (covered.count(name) == 0) fail("the parameter '{}' has no place in this family of checkpoints", name);
  }
  return all;
}

std::vector<int64_t> shape_of(const Correspondence& c, const Shapes& ours) {
  std::vector<int64_t> shape = ours.at(c.ours.front());
  for (size_t i = 1; i < c.ours.size(); ++i) shape.front() += rows(c.ours[i], ours);
  if (c.transposed) std::swap(shape[0], shape[1]);
  return shape;
}

std::vector<Tensor> parts_of(const Correspondence& c, const Tensor& theirs, const Shapes& ours) {
  const Tensor upright = c.transposed ? theirs.t() : theirs;
  if (c.ours.size() == 1) return {upright};
  std::vector<int64_t> sizes;
  for (const auto& name : c.ours) sizes.push_back(rows(name, ours));
  return upright.split_with_sizes(sizes, 0);
}

Tensor joined(const Correspondence& c, const std::map<std::string, Tensor>& ours) {
  std::vector<Tensor> parts;
  for (const auto& name : c.ours) parts.push_back(ours.at(name).detach());
  const Tensor upright = parts.size() == 1 ? parts.front() : torch::cat(parts, 0);
  return c.transposed ? upright.t().contiguous() : upright;
}

std::vector<std::string> fill(torch::nn::Module& module, const std::vector<Correspondence>& family,
                              const Spelling& spelling, const TensorSource& source) {
  const Shapes ours = shapes_of(module);
  const auto list = written_out(family, ours);
  auto on_disk = spelled(source, spelling);
  std::vector<std::string> problems;
  for (const auto& c : list) {
    const auto found = on_disk.find(c.theirs);
    if (found == on_disk.end()) {
      problems.push_back(fmt::format("'{}' is missing", c.theirs));
    } else if (source.shapes.at(found->second) != shape_of(c, ours)) {
      problems.push_back(fmt::format("'{}' is {}, config.json asks for {}", found->second,
                                     written(source.shapes.at(found->second)), written(shape_of(c, ours))));
    }
  }
  if (!problems.empty()) fail("{}: does not fit config.json: {}", source.name, fmt::join(problems, "; "));
  auto parameters = module.named_parameters();
  const torch::NoGradGuard no_grad;
  for (const auto& c : list) {
    const auto parts = parts_of(c, source.load(on_disk.at(c.theirs)), ours);
    for (size_t i = 0; i < parts.size(); ++i) parameters[c.ours[i]].copy_(parts[i]);
    on_disk.erase(c.theirs);
  }
  std::vector<std::string> unused;
  for (const auto& [known, name] : on_disk) {
    if (known != "lm_head.weight") unused.push_back(name);  // there, but tied to the embedding
  }
  return unused;
}

}  // namespace seqloom::huggingface
