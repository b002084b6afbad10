// A mixer in one file: what CONTRIBUTING.md shows. Nothing else in the project names it; it is compiled into the law
// tests and into a shared library that the command line tests preload.
#include "mixers/heads.h"
#include "mixers/mixer.h"

namespace seqloom {
namespace {

struct ToyOptions {
  double decay = 0.9;
  void describe(Fields& f) { f.add("decay", decay, "what stays of the mean after a token").at_least(0).less_than(1); }
};

/// A decaying mean of the tokens: m_t = decay m_{t-1} + (1 - decay) x_t, y_t = W m_t. Memory: m [B, D].
class ToyMixer final : public ScannableMixer {
 public:
  using Options = ToyOptions;
  static constexpr const char* about = "m_t = decay m_{t-1} + (1 - decay) x_t: a decaying mean, for the tests";

  ToyMixer(int64_t width, const Options& options) : ScannableMixer(width), decay_(options.decay) {
    out_proj_ = register_module("out_proj", linear(width, width, false));
  }

  Memory empty_memory(int64_t batch) const override {
    Memory memory;
    memory["m"] = torch::zeros({batch, width()}, state_options());
    return memory;
  }

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override {
    const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
    std::vector<Tensor> means;
    for (int64_t t = 0; t < x.size(1); ++t) {
      const Tensor mean = decay_ * memory["m"] + (1 - decay_) * x.select(1, t);
      memory["m"] =
          keep.defined() ? torch::where(keep.narrow(1, t, 1), mean, memory["m"]) : mean;  // padding: as it was
      means.push_back(memory["m"]);
    }
    return out_proj_(torch::stack(means, 1).to(x.scalar_type()));
  }
  Memory identity_element(int64_t batch) const override {
    Memory element = empty_memory(batch);
    element["keeps"] = torch::ones({batch}, state_options());
    return element;
  }
  Memory element(const Tensor& x, Memory&, Pass&) override {
    Memory element = identity_element(x.size(0));
    for (const Tensor& token : x.unbind(1)) {
      element["keeps"] = decay_ * element["keeps"];
      element["m"] = decay_ * element["m"] + (1 - decay_) * token;
    }
    return element;
  }
  Memory combine_elements(const Memory& left, const Memory& right) const override {
    Memory both;
    both["keeps"] = left.at("keeps") * right.at("keeps");
    both["m"] = right.at("keeps").unsqueeze(1) * left.at("m") + right.at("m");
    return both;
  }
  void apply_element(const Memory& element, Memory& memory) override {
    memory["m"] = element.at("keeps").unsqueeze(1) * memory["m"] + element.at("m");
  }

 private:
  double decay_;
  Linear out_proj_{nullptr};
};

SEQLOOM_REGISTER_MIXER("toy", ToyMixer);

}  // namespace
}  // namespace seqloom
