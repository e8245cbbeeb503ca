#!/usr/bin/env python3
"""Renders chat templates with Python's Jinja2, set up as Hugging Face transformers sets it up, and
writes inputs and outputs to the JSON files that tests/templates.rs compares against.

    python3 make.py SHARED      # SHARED: the folder with real/ and testbed/; needs jinja2

Run it again only to add cases: the files it wrote are part of the repository.
"""

import datetime
import json
import pathlib
import sys

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message):
        raise TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return env


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(name, text):
    return {"role": "tool", "content": text, "name": name}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather; <b>°C</b> & \"words\"",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "a town: Zürich, 東京"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "share": {"type": "number", "default": 1.0, "maximum": 1e16, "minimum": 1e-05},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}

TURN = [user("What is two and two?"), assistant("Four."), user("And three more?")]
CALLS = [
    user("Is it raining in Zürich?"),
    assistant("", tool_calls=[call("weather", place="Zürich", days=1)]),
    tool("weather", '{"rain": true}'),
    assistant("Yes, take an umbrella. ☔"),
    user("And the time there and in 東京?"),
    assistant("Let me look.", tool_calls=[call("clock", zone="CET"), call("clock", zone="JST", h=1.5)]),
    tool("clock", "12:00"),
    tool("clock", "20:00"),
]
THINK = "<think>\nTwo and two.\nThat is four.\n</think>\n\nFour."

# name, request (what a ChatRequest holds; add_generation_prompt is true unless given)
CASES = [
    ("user", {"messages": [user("Hello, <b>world</b> & 'you'")]}),
    ("system", {"messages": [system("Be brief."), user("Hi")]}),
    ("multi-turn", {"messages": TURN}),
    ("system, multi-turn", {"messages": [system("Be brief.")] + TURN}),
    ("late system", {"messages": TURN[:2] + [system("Now be long."), user("Go on")]}),
    ("no generation prompt", {"messages": TURN[:2], "add_generation_prompt": False}),
    ("white space", {"messages": [system("  \n"), user("\n a \n\n"), assistant(" b\n"), user("")]}),
    ("unicode", {"messages": [user("👩‍👩‍👧 naïve\u00a0\u2028 \u0000 \"q\" \\n {{ x }} {% if %}")]}),
    ("tools", {"messages": [user("Weather?")], "tools": [WEATHER, CLOCK]}),
    ("system and tools", {"messages": [system("Be brief."), user("Weather?")], "tools": [CLOCK]}),
    ("tool calls", {"messages": CALLS, "tools": [WEATHER, CLOCK]}),
    ("first tool call", {"messages": CALLS[:2], "tools": [WEATHER]}),
    ("tool calls, no tools", {"messages": CALLS}),
    ("thinking before the last question", {"messages": [user("2+2?"), assistant(THINK), user("+3?")]}),
    ("thinking in the last answer", {"messages": [user("2+2?"), assistant(THINK)]}),
    ("thinking between tools", {"messages": [
        user("Rain?"),
        assistant("<think>\nAsk.\n</think>\n\n", tool_calls=[call("weather", place="Bern")]),
        tool("weather", "no"),
        assistant(THINK),
    ], "tools": [WEATHER]}),
    ("reasoning apart", {"messages": [user("2+2?"), assistant("Four.", reasoning_content="\nTwo.\n")]}),
    ("no thinking", {"messages": [user("2+2?")], "variables": {"enable_thinking": False}}),
    ("asked to think", {"messages": [user("2+2?")], "variables": {"enable_thinking": True}}),
]

# What real templates of other families lean on, in templates of our own.
SMALL = {
    "roles": "{% for m in messages %}\n    [{{ m.role | upper }}] {{ m['content'] | trim }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n[ASSISTANT]\n{% endif %}\n",
    "json": "{{ tools | tojson }}\n{{ tools | tojson(indent=4) }}\n{{ tools | tojson(ensure_ascii=true) }}\n"
    "{{ tools | tojson(sort_keys=true, separators=[',', ':']) }}",
    "methods": "{% for m in messages %}{% set c = m.content %}{{ c.strip() }}|{{ c.split('o')[0] }}|"
    "{{ c.startswith('H') }}|{{ c.replace('l', 'L') }}|{{ c.upper() }}|{{ m.get('name', 'x') }}|"
    "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}\n{% endfor %}",
    "control": "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}"
    "{% endif %}{% set ns.n = ns.n + 1 %}{{ ns.n }}/{{ loop.index }}{% if ns.n == 2 %}{% break %}{% endif %}"
    "{% endfor %}{{ messages[::-1][0].content }} {{ messages[1:] | length }}",
    "values": "{{ true }} {{ false }} {{ none }} {{ missing }} {{ 1.0 }} {{ tools is none }} "
    "{{ missing is defined }} {{ bos_token }}{{ eos_token is defined }} {{ 'a' if missing else 'b' }} "
    "{{ messages[0].content is string }} {{ documents is none }}",
    "macro": "{% macro turn(m, end='</s>') -%}\n    {{ m.role }}: {{ m.content }}{{ end }}\n{%- endmacro %}\n"
    "{% for m in messages %}{{ turn(m) }}{% if not loop.last %}{{ turn(m, end='|') }}{% endif %}{% endfor %}\n",
    "refusal": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role, please') }}"
    "{% endif %}{{ m.content }}{% endfor %}",
}
SMALL_CASES = [CASES[0], CASES[3], CASES[8]]


def render(env, source, special_tokens, cases):
    template = env.from_string(source)
    rows = []
    for name, request in cases:
        row = {"name": name, **request}
        try:
            row["expected"] = template.render(
                messages=request["messages"],
                tools=request.get("tools"),
                documents=None,
                add_generation_prompt=request.get("add_generation_prompt", True),
                **special_tokens,
                **request.get("variables", {}),
            )
        except TemplateError as error:
            row["refused"] = str(error)
        rows.append(row)
    return rows


def write(name, content):
    text = json.dumps(content, indent=1, ensure_ascii=True)
    (HERE / name).write_text(text + "\n")


def main():
    shared = pathlib.Path(sys.argv[1])
    env = environment()
    checkpoints = [
        ("qwen2.5.json", "real/qwen2.5-0.5b-instruct"),
        ("qwen3.json", "real/qwen3-0.6b"),
        ("gemma3-tiny.json", "testbed/gemma3-tiny"),
    ]
    for name, folder in checkpoints:
        config = json.loads((shared / folder / "tokenizer_config.json").read_text())
        tokens = {k: config[k] for k in ("bos_token", "eos_token", "pad_token") if config.get(k)}
        cases = CASES[:8] if name.startswith("gemma") else CASES
        rows = render(env, config["chat_template"], tokens, cases)
        write(name, {"checkpoint": folder, "cases": rows})
    small = [
        {"template": source, "cases": render(env, source, {"bos_token": "<s>"}, SMALL_CASES)}
        for source in SMALL.values()
    ]
    write("small.json", small)


if __name__ == "__main__":
    main()
