"""Makes tests/io/data/jinja.json with real Jinja, set up as `transformers` does it for chat templates: templates in the
styles of the model families, and small ones for each rule of the language; the text that each gives, or that it fails.
Run from the repository's root."""
import json
import pathlib

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system_message != false %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{#- The system message comes first. -#}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You have access to the following functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- endif %}
{%- endfor %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

COMMAND = """{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}
    {{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "list[" + json_to_python_type(json_spec["items"]) + "]" }}
{%- elif json_spec.type == "object" %}
    {{- "dict" }}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}
        {{- "," }}
    {%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}
{%- for tool in tools or [] %}
{%- set tool = tool.function %}
def {{ tool.name }}(
{%- for name, spec in tool.parameters.properties|dictsort %}
{{ name }}: {{ json_to_python_type(spec) }}{{ "" if name in tool.parameters.required else " = None" }}{{ ", " if not loop.last }}
{%- endfor -%}
):
    '''{{ tool.description | default("no words") | upper }}'''
{% endfor %}
{% for message in messages if message.role != "tool" %}
  {% if loop.first %}
Preamble
  {% endif %}
  {{ loop.index }}/{{ loop.length }} {{ message.role | title }}: {{ message.content if message.content is string else "-" }}
{% else %}
nobody
{% endfor %}
"""

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather at a place — now",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "City, e.g. \"Zürich\""},
            "days": {"type": "array", "items": {"type": "integer"}},
            "unit": {"type": ["string", "number"], "enum": ["C", "F", 1.5, True, None]}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
CHATS = {
    "plain": [{"role": "user", "content": "Hello\n world "}],
    "system": [
        {"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  2 + 2? <b>&</b> "},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"}, {"role": "user", "content": "Größe? 你好 🙂"},
    ],
    "tools": [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "abcdefghi", "type": "function",
             "function": {"name": "weather", "arguments": {"place": "Bern", "days": [1, 2], "f": -0.5}}}]},
        {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "Sunny."},
    ],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}],
    "wrong": [{"role": "assistant", "content": "I begin"}, {"role": "assistant", "content": "again"}],
    "empty": [],
}
STYLES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "qwen": QWEN, "gemma": GEMMA,
          "command": COMMAND}

DATA = {"a": 1, "b": "text", "f": 2.5, "t": True, "n": None, "l": [3, 1, 2], "d": {"z": 1, "a": {"b": [1, 2]}},
        "s": "  Ünï cödé\tstraña \n", "people": [{"name": "bo", "age": 3, "tags": ["x"]}, {"name": "Al", "age": 2}]}
SNIPPETS = [
    # white space
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "a\n  {% if t %}  \n  b\n  {% endif %}x\nc\n\n", "  {{ a }}  \n", " {%+ if t %}x{%+ endif %} ",
    "a {%- if t -%} b {%- endif -%} c", "a\n{# c #}\nb\n  {#- c -#}  \n d", "{% if t +%}\nx{% endif %}", "x\r\ny\rz\r\n",
    "{% raw %}\n{{ a }} {% if %}\n{% endraw %}\nb", "  {%- raw -%} {{ x }} {%- endraw -%}  b", "a{#- c +#}\n b", "{{ 'a' -}}\n\n {{- 'b' }}",
    "{% for x in l %}\n  {% if x > 1 %}\n{{ x }}\n  {% endif %}\n{% endfor %}", "{#x#}  {% if t %}y{% endif %}", "{{ '}}' }}{{ {'a': {'b': 1}}.a.b }}",
    # literals, arithmetic
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ 6 / 2 }}", "{{ -2 ** 2 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }}",
    "{{ 1.0 }} {{ 1e20 }} {{ 1e-7 }} {{ 123456789.125 }} {{ 1_000 }} {{ 0.1 + 0.2 }} {{ 5.0 // 2 }} {{ -5.5 % 2 }}", "{{ 'a' 'b' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x'] }}",
    "{{ [1, 'a\"', \"it's\", none, true, 1.5, {'k': 'v\\n'}] }}", "{{ {} }} {{ [] }} {{ '' }}|{{ (1, 2) | list }}", "{{ 'ab' * 3 }} {{ [0] * 2 }} {{ 2 * 'x' }} {{ 'x' * -1 }}",
    "{{ true + 1 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ [1, 2] == [1.0, 2] }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}",
    "{{ 1 if t else 2 }} {{ 1 if not t }}|{{ 'x' if n else 'y' if f else 'z' }}", "{{ t and b }} {{ n or b }} {{ not n }} {{ n and 1 }} {{ '' or 0 }}",
    "{{ 2 in l }} {{ 'ex' in b }} {{ 'z' in d }} {{ 9 not in l }} {{ not 9 in l }}", "{{ '\\u00e9\\x41\\t|\\\\|\\'|\\q' }}", "{{ 1 + 'a' }}", "{{ 1 // 0 }}", "{{ 1 < 'a' }}",
    # access
    "{{ d.z }} {{ d['a'].b[1] }} {{ d.a.b[-1] }} {{ l.0 }} {{ l[5] }}|{{ d.missing }}|{{ missing }}|", "{{ missing.attribute }}", "{{ missing + 1 }}", "{{ d.missing.x }}",
    "{{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ b[1:3] }} {{ b[::2] }} {{ l[5:] }} {{ b[-2:] }} {{ b[::-1] }} {{ l[2:0:-1] }}", "{{ d.items() | list | tojson }} {{ d.keys() | list }} {{ d.values() | list }}",
    "{{ d.get('z') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d.get('a', {}).get('b') }}", "{{ s[2] }}{{ s[3:6] }} {{ s | length }}", "{{ n.x is defined }}|{{ a.b }}|{{ l.count(1) }} {{ l.index(2) }}",
    "{{ missing() }}", "{{ d.a.b.append(3) }}", "{{ ''.__class__ }}",
    # tests
    "{{ a is number }} {{ a is integer }} {{ f is float }} {{ t is boolean }} {{ t is number }} {{ t is integer }} {{ b is string }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ b is iterable }} {{ a is iterable }} {{ l is sequence }} {{ d is sequence }}",
    "{{ n is none }} {{ q is defined }} {{ q is undefined }} {{ a is not defined }} {{ q is not none }} {{ t is true }} {{ 1 is true }} {{ t is sameas true }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(4) }}",
    "{{ a is eq 1 }} {{ a is equalto(1) }} {{ a is in [1, 2] }} {{ 'A' is upper }} {{ 'a' is lower }} {{ a is gt 0 }} {{ a is lt 0 }} {{ a is ge 1 and f is le(3) }} {{ range is callable }}", "{{ a is nonsense }}",
    "{{ not a is defined }} {{ a is defined and b is defined or n }} {{ 'x' if a is defined else 'y' }}",
    # filters
    "[{{ s | trim }}] {{ s | upper }} {{ s | lower }} {{ s | capitalize }} {{ 'foo-bar (baz)' | title }} {{ 'xxaxx' | trim('x') }}", "{{ l | join(', ') }} {{ l | join }} {{ people | join('/', attribute='name') }} {{ 'abc' | join('-') }}",
    "{{ l | first }} {{ l | last }} {{ [] | first }}| {{ b | first }} {{ l | sort }} {{ l | sort(reverse=true) }} {{ people | sort(attribute='name') | map(attribute='name') | list }}",
    "{{ l | length }} {{ d | length }} {{ b | count }} {{ q | length }} {{ l | sum }} {{ l | min }} {{ l | max }} {{ people | sum(attribute='age') }} {{ ['b', 'A', 'a'] | unique | list }} {{ ['b', 'A'] | sort }}",
    "{{ q | default('x') }} {{ n | default('x') }} {{ n | default('x', true) }} {{ '' | d('y', boolean=true) }} {{ q | default }}|", "{{ 'a-b-c' | replace('-', '+') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc' | reverse }} {{ l | reverse | list }}",
    "{{ d | tojson }} {{ s | tojson }} {{ [1.0, 1e-9, none, true, '<\\u00e9\\x01>'] | tojson }} {{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }}", "{{ '12' | int }} {{ '1.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 2.9 | int }} {{ '-3' | int }} {{ '2.5' | float }} {{ 'z' | float }} {{ 3 | float }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb\n' | indent('> ') }}", "{{ people | selectattr('tags') | list | length }} {{ people | selectattr('age', 'gt', 2) | map(attribute='name') | join }} {{ people | rejectattr('name', 'equalto', 'bo') | list }} {{ l | select('odd') | list }} {{ l | reject('odd') | list }}",
    "{{ ['a', 'b'] | map('upper') | list }} {{ people | map(attribute='tags', default='-') | list }} {{ [1, 2] | map('string') | join('') }}", "{{ -3 | abs }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 2.1 | round(method='ceil') }} {{ 'a b  c' | wordcount }} {{ '<a href=\"x\">' | e }} {{ b | safe }}",
    "{{ d | items | list | tojson }} {{ d | dictsort | tojson }} {{ d | list }} {{ 'ab' | list }} {{ 5 | string ~ 'x' }}", "{{ b | nonsense }}", "{{ b | upper | lower | length + 1 }} {{ -1 | abs }} {{ 'a' ~ 'b' | upper }}", "{{ q | upper }}|{{ q | join }}|{{ q | list }}", "{{ q | tojson }}",
    # methods
    "{{ ' a b '.strip() }}|{{ 'xxay'.lstrip('x') }}|{{ 'ayxx'.rstrip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a b c'.rsplit(' ', 1) }}|{{ 'a b c d'.split(none, 2) }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abcabc'.find('c') }} {{ 'abcabc'.rfind('c') }} {{ 'abc'.find('z') }} {{ 'ééx'.index('x') }} {{ 'aXbX'.count('X') }}",
    "{{ 'hello wORLD'.title() }} {{ 'hello wORLD'.capitalize() }} {{ 'aB'.upper() }} {{ 'aB'.lower() }} {{ 'a.b'.replace('.', '!') }} {{ 'aaa'.replace('a', 'b', 1) }} {{ ', '.join(['a', 'b']) }} {{ 'ab'.replace('', '-') }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ '12'.isdigit() }} {{ 'ab1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'a\nb\r\nc'.splitlines() }}", "{{ ','.join([1]) }}", "{{ 'a'.split('') }}",
    # statements
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in b %}{{ c }}.{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}", "{% for x in missing %}a{% else %}e{% endfor %}", "{% for x in a %}{% endfor %}",
    "{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}", "{% set ns = namespace(x=0, y='k') %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}|", "{% if n %}{% set q = 1 %}{% endif %}{{ q is defined }}{% if t %}{% set q = 1 %}{% endif %}{{ q }}",
    "{% set a, b = [5, 6] %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c | length }}", "{% set x %}\n a {{ b }}\n{% endset %}[{{ x }}]{% set y | trim | upper %} {{ b }} {% endset %}[{{ y }}]", "{% filter upper %}a{{ b }}{% endfilter %}{% filter trim | lower %} AB {% endfilter %}", "{% with x = 2, y = x %}{{ x }}{% endwith %}{{ x }}|",
    "{% macro m(x, y=2, z=none) %}[{{ x }}{{ y }}{{ z }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, z=5) }}{{ m() }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro box() %}<{{ caller() }}>{% endmacro %}{% call box() %}in {{ b }}{% endcall %}", "{% macro m() %}{{ a }}{{ later }}{% endmacro %}{% set later = 'L' %}{{ m() }}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}{{ range(1, 7, 2) | list }}{{ range(3, 0, -1) | list }}", "{{ dict(a=1, b='x') }} {{ dict(d, q=1) | length }}", "{% generation %}abc{% endgeneration %}",
    "{{ raise_exception('no: ' ~ b) }}", "{% if a == 1 %}one{% elif a == 2 %}two{% else %}many{% endif %}{% if false %}x{% elif t %}y{% endif %}", "{{ strftime_now('%%') }}", "{% for x in l %}{% for y in l %}{{ loop.index }}{% if y == x %}{% break %}{% endif %}{% endfor %}|{% endfor %}",
    # syntax
    "{% if a %}", "{{ a", "{% endif %}", "{{ a b }}", "{{ [1, 2 }}", "{% for in l %}{% endfor %}", "{{ 'a }}", "{% unknown %}", "{# open", "{{ 1 + }}", "{% set x %}", "{{ a | }}", "{% break %}", "{{ }}", "{%", "{{ a.. }}", "{{ (1 }}", "{% if %}{% endif %}", "{{ not }}",
]


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda text: __import__("datetime").datetime.now().strftime(text)
    return env


def raise_exception(message=""):
    raise jinja2.exceptions.TemplateError(message)


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks the assistant's part for training, and prints it."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True))


def case(env, templates, variables, template, given):
    entry = {"template": template, "variables": given}
    try:
        return entry | {"text": env.from_string(templates.get(template, template)).render(**variables[given])}
    except Exception as error:  # whatever it is: the engine must fail too
        return entry | {"error": f"{type(error).__name__}: {error}"}


def main():
    env = environment()
    variables = {"data": DATA}
    for name, chat in CHATS.items():
        base = {"messages": chat, "tools": None, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
        variables |= {name: base, name + " with tools": base | {"tools": TOOLS, "enable_thinking": False}}
    cases = [case(env, STYLES, variables, style, given) for style in STYLES for given in variables if given != "data"]
    cases += [case(env, STYLES, variables, snippet, "data") for snippet in SNIPPETS]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in cases)
    head = f'"styles": {json.dumps(STYLES)},\n"variables": {json.dumps(variables, ensure_ascii=False)}'
    pathlib.Path("tests/io/data/jinja.json").write_text(f'{{{head},\n"cases": [\n{lines}\n]}}\n')
    print(sum("error" in entry for entry in cases), "of", len(cases), "fail")


main()
