// Studies: what a file may say, that variants are trained alike, how a claim is judged, what the report holds.
#include "train/study.h"

#include <cmath>
#include <regex>
#include <set>

#include "base/error.h"
#include "io/toml.h"
#include "support/process.h"
#include "train/anatomy.h"
#include "train/chart.h"
#include "train/matrix_picture.h"
#include "train/picture.h"
#include "train/report.h"
#include "train/study_series.h"

namespace seqloom {
namespace {

constexpr const char* kStudy = R"(
[study]
title = "Two memories"
[task]
kind = "recall"
pairs = 3
keys = 6
values = 4
eval_pairs = [2, 3]
eval_rows = 8
[model]
width = 8
[train]
steps = 3
batch = 2
[[variant]]
name = "one"
model.layers = [{ repeat = 3, mixer = { kind = "linear_attention", heads = 2 } }]
[[variant]]
name = "two"
model.layers = [{ mixer = { kind = "attention", heads = 2, position = "rope" } }]
train.learning_rate = 0.5
)";

Study study(const std::string& more = "") {
  return parse_study(parse_toml(kStudy + more, "s.toml"), "s.toml");
}

/// Expects a UsageError that names the file and holds `part`.
template <typename Act>
void expect_misuse(Act act, const std::string& part) {
  try {
    act();
    ADD_FAILURE() << "no error, expected: " << part;
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("s.toml: ", 0), 0U) << error.what();
  }
}

class StudyRun : public InTemporaryFolder {};

TEST(StudyFile, VariantsLayTheirKeysOverTheRecipe) {
  const Study parsed = study();
  ASSERT_EQ(parsed.variants.size(), 2U);
  EXPECT_EQ(parsed.title, "Two memories");
  EXPECT_EQ(parsed.variants[0].recipe["train"], Config({{"steps", 3}, {"batch", 2}}));
  EXPECT_EQ(parsed.variants[1].recipe["train"]["learning_rate"], 0.5);
  EXPECT_EQ(parsed.variants[1].recipe["model"]["width"], 8);
  EXPECT_FALSE(parsed.variants[1].recipe.contains("name"));
}

TEST(StudyFile, ErrorsNameFileAndKey) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"[extra]\n", "there is no such key 'extra'"},
      {"[[variant]]\nname = 'one'\n", "variant.2.name: the name 'one' is taken"},
      {"[[variant]]\nmodel.width = 4\n", "variant.2.name is missing"},
      {"[[variant]]\nname = '../evil'\n", "variant.2.name = \"../evil\" becomes a folder"},
      {"[[variant]]\nname = 'a'\nmodell.width = 4\n", "variant.2.modell: there is no such key"},
      {"[[variant]]\nname = 'a'\ntrain = 4\n", "variant.2.train: expected a table"},
      {"[claim]\n", "claim: expected checks"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'three', at_least = 1 }]\n", "there is no such variant"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one', beats = 'three' }]\n", "claim.checks.0.beats"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one' }]\n", "exactly one of"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one', at_least = 1, at_most = 2 }]\n", "exactly one of"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one', at_least = 1, by = 2 }]\n", "claim.checks.0.by"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one', at_least = 1, factor = 2 }]\n", "claim.checks.0.factor"},
      {"[claim]\nchecks = [{ metric = 'm', variant = 'one', atleast = 1 }]\n", "did you mean 'at_least'?"},
      {"[claim]\nchecks = [3]\n", "claim.checks.0"}};
  for (const auto& [more, part] : wrong) expect_misuse([&text = more] { study(text); }, part);
  expect_misuse([] { parse_study(parse_toml("[task]\nkind = 'recall'\n", "s.toml"), "s.toml"); }, "no [[variant]]");
  expect_misuse([] { parse_study(parse_toml("model = 3\n[[variant]]\nname = 'a'\n", "s.toml"), "s.toml"); }, "model");
}

TEST_F(StudyRun, WrongRecipesAndMetricsComeToLightBeforeTraining) {
  const auto run = [&](const std::string& more) { run_study(study(more), path("out"), 0, {}); };
  const std::string check = "[claim]\nchecks = [{ variant = 'two', ";
  expect_misuse([&] { run(check + "metric = 'accuracy@5', at_least = 1 }]\n"); }, "it gives accuracy, accuracy@2");
  expect_misuse([&] { run("[[variant]]\nname = 'bad'\nmodel.layers = [{ mixer = { kind = 'nothing' } }]\n"); }, "bad");
  expect_misuse([&] { run("[[variant]]\nname = 'bad'\ntrain.stepz = 1\n"); }, "bad: train.stepz");
  EXPECT_FALSE(std::filesystem::exists(path("out"))) << "nothing was trained";
}

TEST_F(StudyRun, EqualVariantsGiveEqualCurves) {
  const Study same = parse_study(
      merge(parse_toml(kStudy, "s.toml"),
            parse_toml("[model]\nlayers = [{ mixer = { kind = 'mamba', state = 2 } }]\n[[variant]]\nname = 'a'\n"
                       "[[variant]]\nname = 'b'\n",
                       "s.toml")),
      "s.toml");
  const StudyResult result = run_study(same, path("out"), 0, {});
  ASSERT_EQ(result.variants.size(), 2U);
  EXPECT_EQ(result.variants[0].losses.size(), 3U);
  EXPECT_EQ(result.variants[0].losses, result.variants[1].losses);
  EXPECT_EQ(result.variants[0].metrics, result.variants[1].metrics);
  EXPECT_TRUE(std::filesystem::exists(path("out/a/checkpoint.safetensors")));
}

TEST_F(StudyRun, ClaimsAreJudged) {
  const StudyResult result = run_study(study(R"([claim]
checks = [
  { metric = "accuracy@3", variant = "one", at_least = 0.0 },
  { metric = "accuracy", variant = "one", at_most = -0.1 },
  { metric = "loss", variant = "one", at_most = 100 },
  { metric = "loss", variant = "one", beats = "two", by = 1e6 },
  { metric = "loss", variant = "one", beats = "one" },
  { metric = "loss", variant = "one", beats = "one", factor = 1.01 },
  { metric = "loss", variant = "one", beats = "one", factor = 0.99 },
  { metric = "accuracy@2", variant = "one", beats = "one", factor = 0.99 },
])"),
                                       path("out"), 0, {});
  ASSERT_EQ(result.checks.size(), 8U);
  const std::vector<bool> expected = {true, false, true, false, true, true, false, true};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(result.checks[i].holds, expected[i]) << i;
  EXPECT_TRUE(result.judged);
  EXPECT_FALSE(result.holds());
  EXPECT_EQ(result.to_json(study())["holds"], false);
}

TEST_F(StudyRun, OfALossLessIsBetter) {
  const std::string more = "[claim]\nchecks = [{ metric = 'loss', variant = 'V', beats = 'W', by = 0 }]\n";
  const auto holds = [&](const std::string& better, const std::string& worse) {
    std::string text = more;
    text.replace(text.find("'V'"), 3, "'" + better + "'");
    text.replace(text.find("'W'"), 3, "'" + worse + "'");
    const StudyResult result = run_study(study(text), path("out"), 0, {});
    EXPECT_EQ(result.checks[0].holds, result.checks[0].value <= *result.checks[0].other);
    return result.holds();
  };
  EXPECT_NE(holds("one", "two"), holds("two", "one"));
}

TEST_F(StudyRun, FewerStepsAreNotJudged) {
  const StudyResult result =
      run_study(study("[claim]\nchecks = [{ metric = 'loss', variant = 'one', at_most = -1 }]\n"), path("out"), 1, {});
  EXPECT_FALSE(result.judged);
  EXPECT_EQ(result.variants[0].losses.size(), 1U);
  EXPECT_TRUE(result.to_json(study())["holds"].is_null());
}

TEST_F(StudyRun, MeasuresMemoryAndDrawsMatrices) {
  const StudyResult result = run_study(study(), path("out"), 1, {});
  const VariantResult &linear = result.variants[0], &attention = result.variants[1];
  // Per layer: S [2, 4, 4] and z [2, 4]; keys and values of 9 tokens.
  EXPECT_EQ(linear.memory_bytes, 3 * 4 * (2 * 4 * 4 + 2 * 4));
  EXPECT_EQ(attention.memory_bytes, 4 * 2 * 9 * 8);
  EXPECT_EQ(attention.memory_tokens, 9);
  ASSERT_EQ(linear.pictures.size(), 2U) << "of the first and the last layer";
  EXPECT_EQ(linear.pictures[1].layer, 2);
  ASSERT_EQ(attention.pictures.size(), 1U);
  EXPECT_TRUE(attention.pictures[0].matrix.sum(1).allclose(torch::ones({9}))) << "softmax rows";
}

TEST_F(StudyRun, ABidirectionalModelHasNoMemory) {
  const Study parsed = study(
      "[[variant]]\nname = 'both'\nmodel.position = 'learned'\nmodel.residual = 'post'\n"
      "model.layers = [{ mixer = { kind = 'linear_attention', heads = 2, causal = false } }]\n");
  const StudyResult result = run_study(parsed, path("out"), 1, {});
  EXPECT_FALSE(result.variants[2].memory_bytes.has_value());
  EXPECT_EQ(result.variants[2].pictures.size(), 1U);
}

TEST_F(StudyRun, ReportIsWholeAndEscapesWhatTheFileSays) {
  Study hostile = study();
  const std::string script = "<script>alert('x')</script>\"onload=\"y";
  hostile.title = hostile.paper = hostile.about = script;
  hostile.variants[0].recipe["task"]["note"] = script;
  StudyResult result = run_study(study(), path("out"), 1, {});
  result.variants[0].metrics[script] = 1;
  result.variants[1].metrics["accuracy"] = std::nan("");
  write_report(hostile, result, path("out"));
  const std::string html = read_text(path("out/report.html"));
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("\"onload"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;onload"), std::string::npos);
  EXPECT_EQ(html.find("http://"), std::string::npos);
  EXPECT_EQ(html.find("https://"), std::string::npos);
  const Config json = Config::parse(read_text(path("out/results.json")));
  EXPECT_EQ(json["variants"][0]["name"], "one");
  EXPECT_EQ(json["variants"][0]["losses"].size(), 1U);
  EXPECT_TRUE(json["variants"][1]["metrics"]["accuracy"].is_null()) << "NaN has no JSON";
}

TEST_F(StudyRun, PictureShowsCurvesOverNOrBarsOfTheClaim) {
  Study hostile = study();
  hostile.title = "<script>";
  StudyResult result = run_study(hostile, path("out"), 3, {});
  const std::string curves = picture_svg(hostile, result);
  EXPECT_NE(curves.find(">accuracy@N over N</text>"), std::string::npos);
  EXPECT_NE(curves.find(">training loss</text>"), std::string::npos);
  EXPECT_EQ(curves.find("<script"), std::string::npos);

  for (auto& variant : result.variants) {
    variant.metrics = {{"error", 0.25}};
    variant.losses.clear();
  }
  result.variants[1].metrics["error"] = std::nan("");
  result.checks.resize(1);
  result.checks[0].check.metric = "error";
  const std::string bars = picture_svg(hostile, result);
  EXPECT_NE(bars.find(">one</text>"), std::string::npos);
  EXPECT_NE(bars.find(">0.25</text>"), std::string::npos);
  EXPECT_EQ(bars.find(">two</text>"), std::string::npos) << "it has no number";
  EXPECT_EQ(bars.find("training loss"), std::string::npos);
}

TEST_F(StudyRun, ATaskThatOnlyMeasuresIsJudgedWithoutAStep) {
  const StudyResult result = run_study(parse_study(parse_toml(R"(
[task]
kind = "sharpness"
eval_rows = 5
keys = 9
[model]
width = 8
[[variant]]
name = "softmax"
model.mixer = { kind = "attention", heads = 1 }
[claim]
checks = [{ metric = "drop", variant = "softmax", at_least = 0 }]
)",
                                                              "test"),
                                                   "test"),
                                       path("out"), 0, {});
  EXPECT_TRUE(result.judged && result.holds());
  EXPECT_TRUE(result.variants[0].losses.empty());
  EXPECT_EQ(result.variants[0].tokens_per_second, 0);
  write_report(study(), result, path("out"));
  EXPECT_EQ(read_text(path("out/report.html")).find("training loss"), std::string::npos);
}

TEST(StudySeries, AMetricsSizeIsANumberBehindAnAt) {
  EXPECT_EQ(size_of_metric("entropy@0.5"), 0.5);
  EXPECT_EQ(size_of_metric("accuracy@16"), 16);
  for (const char* name : {"accuracy", "a@", "a@.", "a@1.2.3", "a@x", "a@-1", "a@1234567890123456"}) {
    EXPECT_FALSE(size_of_metric(name)) << name;
  }
}

TEST(Chart, DrawsWhateverNumbersThereAre) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<std::pair<double, double>>> sets = {{},
                                                                    {{1, 1}},
                                                                    {{0, 0}, {0, 0}},
                                                                    {{1e16, 1e16}, {1e16 + 4, 1e16 + 4}},
                                                                    {{-1e300, 1e300}, {1, inf}, {std::nan(""), 1}},
                                                                    {{-1e29, -1e29}, {1e29, 1e29}},
                                                                    {{1e-320, 1e-320}, {1, 1}}};
  for (const auto& points : sets) {
    for (const bool logarithmic : {false, true}) {
      const std::string svg = chart_svg({{"a", points}}, {.title = "t",
                                                          .x_label = "x",
                                                          .y_label = "y",
                                                          .log_x = logarithmic,
                                                          .log_y = logarithmic,
                                                          .names = logarithmic});
      EXPECT_LT(svg.size(), 10000U);
      EXPECT_EQ(svg.find("nan"), std::string::npos) << svg;
      EXPECT_EQ(svg.find("inf"), std::string::npos) << svg;
    }
  }
}

TEST(Chart, TellsEightSeriesApartByColourDashAndMarker) {
  const std::vector<std::string> names(8, "x");
  std::string legend = legend_html(names);
  for (int i = 0; i < 8; ++i) EXPECT_NE(legend.find("line s" + std::to_string(i)), std::string::npos);
}

TEST(Chart, NamesAtTheEndsOfLinesKeepApart) {
  std::vector<Series> series;  // thirty lines that end in one point
  for (int i = 0; i < 30; ++i) series.push_back({fmt::format("<{}>", i), {{1, 10 + i}, {2, 10}}});
  const std::string svg =
      chart_group(series, {.title = "t", .x_label = "x", .y_label = "y", .log_y = true, .names = true, .height = 600});
  std::set<double> heights;
  const std::regex name("<text class='name[^']*' x='[0-9.]+' y='([0-9.]+)'>&lt;[0-9]+&gt;</text>");
  for (auto found = std::sregex_iterator(svg.begin(), svg.end(), name); found != std::sregex_iterator(); ++found) {
    heights.insert(std::stod((*found)[1]));
  }
  ASSERT_EQ(heights.size(), 30U);
  double before = 0;
  for (const double height : heights) {
    EXPECT_GE(height - before, 12) << height;
    before = height;
  }
  EXPECT_LE(before, 600);
}

TEST(Chart, AFileIsWholeXml) {
  const std::string file = svg_file(10, 20, "<&'>", chart_group({{"a", {{1, 1}, {2, 3}}}}, ChartOptions()));
  EXPECT_EQ(file.rfind("<svg xmlns=", 0), 0U);
  EXPECT_NE(file.find("aria-label='&lt;&amp;&#39;&gt;'"), std::string::npos);
  EXPECT_NE(file.find("--paper:"), std::string::npos);
  EXPECT_EQ(file.find("href"), std::string::npos) << "it loads nothing";
}

TEST(Chart, ShrinksLargeMatricesToTheirStrongestEntries) {
  torch::Tensor matrix = torch::zeros({400, 400});
  matrix[399][1] = -2;
  matrix[0][0] = std::nan("");
  const std::string svg = matrix_svg(matrix, "m");
  EXPECT_NE(svg.find("viewBox='0 0 80 80'"), std::string::npos) << svg.substr(0, 200);
  EXPECT_NE(svg.find("class='minus' stroke-opacity='1.00' d='M0 79.5h1'"), std::string::npos) << svg;
  EXPECT_EQ(svg.find("class='plus'"), std::string::npos);
}

}  // namespace
}  // namespace seqloom
