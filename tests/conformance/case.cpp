#include "conformance/case.h"

#include <filesystem>

#include <fmt/ostream.h>

#include "base/error.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

std::string metadata(const Safetensors& file, const std::string& path, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) fail("{}: not a conformance case: its metadata has no '{}'", path, key);
  return found->second;
}

double number(const std::string& text, const std::string& path, const std::string& key) {
  const Config value = Config::parse(text, nullptr, false);
  if (!value.is_number()) fail("{}: metadata '{}' = '{}' is not a number", path, key, text);
  return value.get<double>();
}

/// The largest error, and whether every element is within atol + rtol |want|.
std::pair<double, bool> compare(const Tensor& got, const Tensor& want, double rtol, double atol) {
  if (want.numel() == 0) return {0, true};
  const Tensor a = got.detach().to(torch::kFloat64), b = want.to(torch::kFloat64);
  const Tensor error = (a - b).abs();
  const bool same = a.isfinite().equal(b.isfinite());
  const Tensor finite = torch::where(b.isfinite(), error, torch::zeros_like(error));
  const bool close =
      same && (finite <= atol + rtol * torch::where(b.isfinite(), b.abs(), torch::zeros_like(b))).all().item<bool>();
  return {finite.max().item<double>(), close};
}

void compare_all(const std::string& kind, const TensorMap& wanted,
                 const std::function<Tensor(const std::string&)>& find, const Case& golden, Result& result) {
  for (const auto& [name, want] : wanted) {
    const Tensor got = find(name);
    std::string problem;
    if (!got.defined()) {
      problem = "is missing";
    } else if (got.sizes() != want.sizes()) {
      problem = fmt::format("is {}, expected {}", fmt::streamed(got.sizes()), fmt::streamed(want.sizes()));
    } else {
      const auto [error, close] = compare(got, want, golden.rtol, golden.atol);
      result.max_error = std::max(result.max_error, error);
      if (!close) problem = fmt::format("differs by {:.3g}", error);
    }
    if (!problem.empty()) {
      result.verdict = Result::Verdict::kFail;
      result.message += fmt::format("{}{}.{} {}", result.message.empty() ? "" : "; ", kind, name, problem);
    }
  }
}

/// sum over outputs of output * cotangent; an output named y that is a scalar needs none.
Tensor weighted_sum(const Case& golden, const TensorMap& outputs) {
  Tensor total;
  const auto add = [&](const Tensor& term) { total = total.defined() ? total + term : term; };
  for (const auto& [name, value] : outputs) {
    const auto own = golden.in.find("cotangent." + name);
    if (own != golden.in.end()) {
      add((value.to(torch::kFloat64) * own->second.to(torch::kFloat64)).sum());
    } else if (name == "y") {
      const auto plain = golden.in.find("cotangent");
      if (plain != golden.in.end()) add((value.to(torch::kFloat64) * plain->second.to(torch::kFloat64)).sum());
      if (plain == golden.in.end() && value.numel() == 1) add(value.to(torch::kFloat64).sum());
    }
  }
  return total;
}

}  // namespace

const Tensor& Case::input(const std::string& name) const {
  const auto found = in.find(name);
  if (found == in.end()) fail("the case has no input '{}'", name);
  return found->second;
}

std::optional<Tensor> Case::optional_input(const std::string& name) const {
  const auto found = in.find(name);
  return found == in.end() ? std::nullopt : std::make_optional(found->second);
}

std::optional<Tensor> Case::optional_param(const std::string& name) const {
  const auto found = param.find(name);
  return found == param.end() ? std::nullopt : std::make_optional(found->second);
}

std::vector<std::string> Case::state_outputs() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : out) {
    if (name.rfind("state.", 0) == 0) names.push_back(name.substr(6));
  }
  return names;
}

Case load_case(const std::string& path) {
  const Safetensors file(path);
  Case golden;
  if (metadata(file, path, "format") != "seqloom-case-1") fail("{}: not a seqloom-case-1 file", path);
  golden.component = metadata(file, path, "component");
  golden.name = std::filesystem::path(path).stem().string();
  golden.config = Config::parse(metadata(file, path, "config"), nullptr, false);
  if (!golden.config.is_object()) fail("{}: metadata 'config' is not a JSON object", path);
  golden.rtol = number(metadata(file, path, "rtol"), path, "rtol");
  golden.atol = number(metadata(file, path, "atol"), path, "atol");
  for (const auto& [full, info] : file.tensors()) {
    const auto dot = full.find('.');
    const std::string kind = full.substr(0, dot), name = dot == std::string::npos ? "" : full.substr(dot + 1);
    TensorMap* group = kind == "in"      ? &golden.in
                       : kind == "param" ? &golden.param
                       : kind == "out"   ? &golden.out
                       : kind == "grad"  ? &golden.grad
                                         : nullptr;
    if (group == nullptr) fail("{}: tensor '{}' is neither in., param., out. nor grad.", path, full);
    (*group)[name] = file.load(full);
  }
  for (const auto& [name, gradient] : golden.grad) {
    const bool of_parameter = name.rfind("param.", 0) == 0;
    auto& group = of_parameter ? golden.param : golden.in;
    const auto leaf = group.find(of_parameter ? name.substr(6) : name);
    if (leaf != group.end()) leaf->second.requires_grad_(true);
  }
  return golden;
}

Registry<Adapter>& adapters() {
  static Registry<Adapter> registry("component");
  return registry;
}

const Adapter& adapter_for(const std::string& component) {
  const std::string family = component.substr(0, component.find('.')) + ".*";
  if (adapters().contains(component)) return adapters().get(component);
  if (adapters().contains(family)) return adapters().get(family);
  throw Unsupported("no such component");
}

Result check(Case& golden) {
  Result result;
  try {
    const TensorMap outputs = adapter_for(golden.component)(golden);
    const auto output = [&](const std::string& name) {
      const auto found = outputs.find(name);
      return found == outputs.end() ? Tensor() : found->second;
    };
    compare_all("out", golden.out, output, golden, result);
    if (!golden.grad.empty()) {
      const Tensor total = weighted_sum(golden, outputs);
      if (!total.defined()) fail("the case has gradients but nothing to differentiate");
      total.backward();
      const auto gradient = [&](const std::string& name) {
        const bool of_parameter = name.rfind("param.", 0) == 0;
        const auto& group = of_parameter ? golden.param : golden.in;
        const auto found = group.find(of_parameter ? name.substr(6) : name);
        if (found == group.end()) return Tensor();
        const Tensor& leaf = found->second;
        return leaf.grad().defined() ? leaf.grad() : torch::zeros_like(leaf);
      };
      compare_all("grad", golden.grad, gradient, golden, result);
    }
  } catch (const Unsupported& reason) {
    result.verdict = Result::Verdict::kUnsupported;
    result.message = reason.what();
  } catch (const std::exception& error) {
    result.verdict = Result::Verdict::kFail;
    result.message = error.what();
  }
  return result;
}

}  // namespace seqloom::conformance
