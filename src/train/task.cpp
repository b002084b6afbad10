#include "train/task.h"

#include <fmt/ranges.h>

namespace seqloom {

Registry<TaskEntry>& tasks() {
  static Registry<TaskEntry> registry("task");
  return registry;
}

std::unique_ptr<Task> make_task(const Config& recipe, const std::string& name) {
  for (const auto& [key, value] : recipe.items()) {
    if (key != "task" && key != "model" && key != "train" && key != "distill") {
      misuse("{}: there is no such key '{}'; a recipe has [task], [model], [train] and maybe [distill]", name, key);
    }
  }
  if (!recipe.contains("task")) misuse("{}: the table [task] is missing", name);
  const Config& task = recipe["task"];
  if (!task.is_object() || !task.contains("kind") || !task["kind"].is_string()) {
    misuse("{}: task.kind is missing; expected one of {}", name, fmt::join(tasks().names(), ", "));
  }
  const auto kind = task["kind"].get<std::string>();
  if (!tasks().contains(kind)) {
    misuse("{}: task.kind = \"{}\": there is no such task; there are: {}", name, kind,
           fmt::join(tasks().names(), ", "));
  }
  const TaskEntry& entry = tasks().get(kind);
  if (!entry.brings_model && !recipe.contains("model")) misuse("{}: the table [model] is missing", name);
  if (entry.brings_model && recipe.contains("model")) misuse("{}: model: the task {} brings its own", name, kind);
  return entry.make(recipe, name);
}

}  // namespace seqloom
