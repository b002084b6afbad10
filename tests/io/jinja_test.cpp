// Chat templates: the same text as real Jinja gives (tests/io/make_jinja_data.py), and hostile templates.
#include "io/jinja/template.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/mapped_file.h"

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;

std::string rendered(const std::string& source, const Json& variables = Json::object()) {
  return JinjaTemplate(source, "t").render(variables);
}

TEST(Jinja, GivesTheTextThatTheReferenceLibraryGives) {
  const Json data = Json::parse(read_file(SEQLOOM_SOURCE_DIR "/tests/io/data/jinja.json"));
  int texts = 0, errors = 0;
  for (const auto& entry : data["cases"]) {
    const auto named = entry["template"].get<std::string>();
    const std::string source = data["styles"].contains(named) ? data["styles"][named].get<std::string>() : named;
    const Json& variables = data["variables"][entry["variables"].get<std::string>()];
    if (entry.contains("error")) {
      EXPECT_ERROR(rendered(source, variables), "t: line ") << named << ": the library says " << entry["error"];
      ++errors;
      continue;
    }
    try {
      EXPECT_EQ(rendered(source, variables), entry["text"].get<std::string>()) << named << " of " << entry["variables"];
    } catch (const Error& error) {
      ADD_FAILURE() << named << " of " << entry["variables"] << ": " << error.what();
    }
    ++texts;
  }
  EXPECT_GT(texts, 100);
  EXPECT_GT(errors, 30);
}

TEST(Jinja, TellsTheTime) {
  const std::string year = rendered("{{ strftime_now('%Y') }}");
  EXPECT_EQ(year.size(), 4U);
  EXPECT_GT(year, "2024");
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_ERROR(rendered("a\n\n{{ missing.x }}"), "t: line 3: undefined ('missing') has no attribute 'x'");
  EXPECT_ERROR(rendered("a\n{{ raise_exception('roles must\nalternate') }}"), "t: line 2: roles must\\x0aalternate");
  EXPECT_ERROR(rendered("{% include 'x' %}"), "the tag 'include' is not supported");
  EXPECT_ERROR(rendered("{{ 9223372036854775807 + 1 }}"), "too large");
  EXPECT_ERROR(rendered("{{ 99999999999999999999 }}"), "too large");
}

TEST(Jinja, HostileTemplatesEndInAnError) {
  const std::string many(100'000, '(');
  for (const std::string& source : {
           std::string("{% for a in range(10 ** 9) %}x{% endfor %}"),
           std::string("{% for a in range(5000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}"),
           std::string("{{ 'x' * 10 ** 12 }}"),
           std::string("{{ ['x'] * 4611686018427387904 }}"),
           std::string("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"),
           std::string("{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}"),
           std::string("{% set n = namespace() %}{% set n.x = n %}"),
           std::string("{% set n = namespace() %}{% set n.x = [range] %}"),
           std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
           std::string("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"),
           std::string("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}"),
           std::string("{{ ('a' * 1000000) | replace('', 'b' * 1000000) }}"),
           std::string("{{ 'a\n' * 1000 | indent('x' * 100000) }}"),
           std::string("{{ range(3000) | map('indent', 'x' * 100000) | list | join }}"),
           std::string("{{ range(100000) | unique | list }}"),
           std::string("{{ range(100000) | join('x' * 100000) }}"),
           std::string("{{ 2 ** 10000000000 }}"),
           std::string("{{ [1] | tojson(indent=1000000000) }}"),
           "{{ " + many + " }}",
           "{{ " + std::string(100'000, '-') + "1 }}",
           "{% set x = " + std::string(100'000, '[') + " %}",
           "{{ 1" +
               [] {
                 std::string s;
                 for (int i = 0; i < 100'000; ++i) s += " + 1";
                 return s;
               }() +
               " }}",
           "{{ a" +
               [] {
                 std::string s;
                 for (int i = 0; i < 100'000; ++i) s += ".a";
                 return s;
               }() +
               " }}",
           [] {
             std::string s;
             for (int i = 0; i < 10'000; ++i) s += "{% if a %}";
             return s;
           }(),
           std::string(2 << 20, 'x'),
       }) {
    EXPECT_ERROR(rendered(source), "t: ") << source.substr(0, 80);
  }
}

TEST(Jinja, LongChatsAreNoHarm) {
  const std::string source =
      "{% for m in messages %}{{ m.role + ': ' + m.content | trim | replace('a', 'b') }}\n{% endfor %}";
  Json chat = Json::array();
  for (int i = 0; i < 2000; ++i) chat.push_back({{"role", "user"}, {"content", std::string(1000, 'a')}});
  EXPECT_EQ(rendered(source, {{"messages", chat}}).size(), 2000U * 1007);
}

}  // namespace
}  // namespace seqloom
