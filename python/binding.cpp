// Mixers, decoders and their memories as classes of PyTorch (torch.classes.seqloom.*), on which python/seqloom/nn
// stands. They are TorchBind classes, so that the library needs no Python and one wheel fits all Pythons. Tables travel
// as JSON.
#include <torch/custom_class.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/toml.h"
#include "mixers/mixer.h"
#include "models/decoder.h"
#include "tasks/language.h"
#include "train/checkpoint.h"

namespace seqloom {
namespace {

using Named = c10::Dict<std::string, Tensor>;
using Texts = c10::Dict<std::string, std::string>;

Config parse(const std::string& json, const char* what) {
  Config value = Config::parse(json, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) misuse("{}: not JSON: {}", what, json);
  return value;
}

/// Where a batch's tokens are: the first lengths[b] of row b, or all.
Pass pass_of(const std::optional<Tensor>& lengths, const Named& values) {
  Pass pass;
  if (lengths) pass.layout = Layout::padded(*lengths);
  for (const auto& entry : values) pass.values[entry.key()] = entry.value();
  return pass;
}

Named values_of(const Pass& pass) {
  Named values;
  for (const auto& [name, tensor] : pass.values) values.insert(name, tensor);
  return values;
}

struct PyMemory : torch::CustomClassHolder {
  explicit PyMemory(Memory memory) : memory(std::move(memory)) {}
  Memory memory;

  Named tensors() const {
    Named named;
    for (const auto& [name, tensor] : memory.flatten()) named.insert(name, tensor);
    return named;
  }
};
using MemoryPointer = c10::intrusive_ptr<PyMemory>;

MemoryPointer wrap(Memory memory) {
  return c10::make_intrusive<PyMemory>(std::move(memory));
}

/// What is common to all modules. Parameters and buffers are the module's own tensors: Python shares them.
template <typename Module>
struct PyModule : torch::CustomClassHolder {
  explicit PyModule(std::shared_ptr<Module> module) : module(std::move(module)) {}
  std::shared_ptr<Module> module;

  Named parameters() const { return named(module->named_parameters()); }
  Named buffers() const { return named(module->named_buffers()); }
  void train(bool on) { module->train(on); }
  void after_step() {
    for (const auto& part : module->modules()) {
      if (auto* mixer = dynamic_cast<Mixer*>(part.get())) mixer->after_step();
    }
  }

 private:
  static Named named(const torch::OrderedDict<std::string, Tensor>& tensors) {
    Named result;
    for (const auto& item : tensors) result.insert(item.key(), item.value());
    return result;
  }
};

struct PyMixer : PyModule<Mixer> {
  PyMixer(int64_t width, const std::string& table)
      : PyModule(make_mixer(width, parse(table, "a mixer's options"), "mixer")) {}

  CausalMixer& causal() const {
    auto* mixer = dynamic_cast<CausalMixer*>(module.get());
    if (mixer == nullptr || !mixer->causal()) misuse("a bidirectional mixer has no memory and cannot stream");
    return *mixer;
  }

  std::tuple<Tensor, Named, std::vector<Tensor>> forward(const Tensor& x, const std::optional<Tensor>& lengths,
                                                         const Named& values) {
    Pass pass = pass_of(lengths, values);
    const Tensor y = module->forward(x, pass);
    return {y, values_of(pass), pass.losses};
  }

  std::tuple<Tensor, Named> step(const Tensor& x, const MemoryPointer& memory, const Named& values) {
    Pass pass = pass_of({}, values);
    const Tensor y = causal().extend(x, memory->memory, pass);
    return {y, values_of(pass)};
  }

  std::optional<Tensor> matrix(const Tensor& x) {
    const auto form = module->matrix(x);
    return form ? std::make_optional(form->matrix) : std::nullopt;
  }

  /// {"mamba": {"about": "...", "options": [{"name": "d_state", "type": "integer", ...}, ...]}, ...}
  static std::string registry() {
    Config all = Config::object();
    for (const auto& name : mixers().names()) {
      Config options = Config::array();
      const Fields fields = mixers().get(name).fields();
      for (const auto& field : fields.list()) {
        options.push_back({{"name", field.name()},
                           {"type", field.type()},
                           {"default", field.get()},
                           {"range", field.range()},
                           {"help", field.help()}});
      }
      Config trials = Config::array();
      for (const auto& trial : mixers().get(name).trials) trials.push_back(parse_toml(trial, name));
      all[name] = {{"about", mixers().get(name).about}, {"options", options}, {"trials", trials}};
    }
    return all.dump();
  }
};

struct PyDecoder : PyModule<Decoder> {
  PyDecoder(int64_t vocabulary, const std::string& table)
      : PyModule(std::make_shared<Decoder>(vocabulary, parse(table, "a decoder's table"), "model")) {}
  explicit PyDecoder(LanguageModel model) : PyModule(model.decoder), checkpoint(std::move(model.checkpoint)) {}

  Checkpoint checkpoint;  // what it was loaded from, if it was

  std::tuple<Tensor, std::vector<Tensor>> hidden(const Tensor& ids, const std::optional<Tensor>& lengths) {
    Pass pass = pass_of(lengths, Named());
    const Tensor h = module->hidden(ids, pass);
    return {h, pass.losses};
  }

  void save(const std::string& path, const std::string& recipe, int64_t step, const Texts& attachments) const {
    Checkpoint saved{path, parse(recipe, "a recipe"), step, {}, {}};
    for (const auto& entry : attachments) saved.attachments[entry.key()] = entry.value();
    save_checkpoint(saved, *module, {});
  }

  Texts attachments() const {
    Texts texts;
    for (const auto& [name, text] : checkpoint.attachments) texts.insert(name, text);
    return texts;
  }
};

template <typename Class>
void define_module(torch::class_<Class>& c) {
  c.def("parameters", [](const c10::intrusive_ptr<Class>& self) { return self->parameters(); });
  c.def("buffers", [](const c10::intrusive_ptr<Class>& self) { return self->buffers(); });
  c.def("train", [](const c10::intrusive_ptr<Class>& self, bool on) { self->train(on); });
  c.def("after_step", [](const c10::intrusive_ptr<Class>& self) { self->after_step(); });
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.class_<PyMemory>("Memory")
      .def("tokens", [](const MemoryPointer& self) { return self->memory.tokens; })
      .def("tensors", [](const MemoryPointer& self) { return self->tensors(); })
      .def("bytes", [](const MemoryPointer& self) { return self->memory.bytes(); })
      .def("clone", [](const MemoryPointer& self) { return wrap(self->memory.clone()); })
      .def("select_rows",
           [](const MemoryPointer& self, const Tensor& index) { return wrap(self->memory.select_rows(index)); })
      .def("save",
           [](const MemoryPointer& self, const std::string& path) {
             save_memory(path, self->memory, {{"format", "seqloom-memory-1"}});
           })
      .def("load",
           [](const MemoryPointer& empty, const std::string& path) { return wrap(load_memory(path, empty->memory)); });

  auto mixer = m.class_<PyMixer>("Mixer");
  define_module(mixer);
  mixer.def(torch::init<int64_t, const std::string&>())
      .def_static("registry", &PyMixer::registry)
      .def("causal", [](const c10::intrusive_ptr<PyMixer>& self) { return self->module->causal(); })
      .def("takes", [](const c10::intrusive_ptr<PyMixer>& self) { return self->module->takes(); })
      .def("forward", &PyMixer::forward)
      .def("step", &PyMixer::step)
      .def("matrix", &PyMixer::matrix)
      .def("empty_memory", [](const c10::intrusive_ptr<PyMixer>& self, int64_t batch) {
        return wrap(self->causal().empty_memory(batch));
      });

  auto decoder = m.class_<PyDecoder>("Decoder");
  define_module(decoder);
  decoder.def(torch::init<int64_t, const std::string&>())
      .def_static("open",
                  [](const std::string& path) {
                    return c10::make_intrusive<PyDecoder>(load_language_model(path, /*trainable=*/true));
                  })
      .def("vocabulary", [](const c10::intrusive_ptr<PyDecoder>& self) { return self->module->vocabulary(); })
      .def("recipe", [](const c10::intrusive_ptr<PyDecoder>& self) { return self->checkpoint.recipe.dump(); })
      .def("training_step", [](const c10::intrusive_ptr<PyDecoder>& self) { return self->checkpoint.step; })
      .def("attachments", &PyDecoder::attachments)
      .def("hidden", &PyDecoder::hidden)
      .def("logits", [](const c10::intrusive_ptr<PyDecoder>& self, const Tensor& h) { return self->module->logits(h); })
      .def("extend", [](const c10::intrusive_ptr<PyDecoder>& self, const Tensor& ids,
                        const MemoryPointer& memory) { return self->module->extend(ids, memory->memory); })
      .def("empty_memory", [](const c10::intrusive_ptr<PyDecoder>& self,
                              int64_t batch) { return wrap(self->module->empty_memory(batch)); })
      .def("save", &PyDecoder::save);
}

}  // namespace
}  // namespace seqloom
