"""Templates that mean harm: each ends in one line, before it has used much time or memory."""

import resource
import sys
import threading
from typing import Any

import pytest

from phicourse.errors import TokenizerError
from phicourse.tokenizer.template import SandboxedTemplate

VARIABLES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi there", "n": 3}], "empty": ""}


def render(source: str) -> str:
    return SandboxedTemplate(source).render(VARIABLES, 10)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}",
            "hi there\n",
        ),
        ("{{ messages[0]['content'] ~ 1 ~ none ~ true }}", "hi there1NoneTrue"),
        ("{{ 2 * 3 + 2 ** 4 - 7 // 2 % 5 }} {{ 'ab' * 2 }} {{ [1] + [2] }}", "19 abab [1, 2]"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
            "{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("{% macro f(x, y=2) %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f(1, y=3) }}", "[12][13]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}", "A1"),
        ("{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}", "user 1"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ [3, 1, 2] | sort | join }} {{ 'cab' | list | sort(reverse=true) | join('-') }}", "123 c-b-a"),
        (
            "{{ ' a ' | trim }}{{ ' b '.strip() }}{{ 'x-y'.split('-') | last }}{{ 'aa'.replace('a', 'b') }}",
            "abybb",
        ),
        ("{{ missing }}{{ missing is defined }}{{ missing | default('d') }}{{ empty or 'e' }}", "Falsede"),
        ("{{ {'a': [1, 'é<']} | tojson }} {{ [1] | tojson(indent=1) }}", '{"a": [1, "é<"]} [\n 1\n]'),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.index }}{{ loop.last }}{% endfor %}",
            "a11True",
        ),
        ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{% generation %}\n{{ 1 }}{% endgeneration %}", "1"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{{ 'hello'[1:3] }}{{ [1, 2, 3][::-1] }}{{ 'e' in 'hello' }}", "el[3, 2, 1]True"),
        ("{{ messages[0].n is number }}{{ messages is iterable }}{{ 'x' is string }}", "TrueTrueTrue"),
        ("{{ 'a' if messages[0].content.startswith('hi') else 'b' }}{{ messages[0].get('x', 'd') }}", "ad"),
    ],
)
def test_what_chat_templates_use_works_as_in_jinja(source: str, text: str) -> None:
    assert render(source) == text


DOUBLE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}"


def doubling(start: str, next: str, use: str = "") -> str:
    return DOUBLE.replace("START", start).replace("NEXT", next) + use


BIG = "{% set big = 'ab ' * 1000000 %}{% for i in range(90000) %}{% set y = USE %}{% endfor %}"

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages | attr('__class__') }}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages | map(attribute='content.__class__.__mro__') | list }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''.join.__self__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ 'x'.encode() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ lipsum() }}",
    "{{ range }}",
    "{{ namespace(a=1) }}",
    "{% set ns = namespace() %}{{ [ns] }}",
    "{% for x in 'ab' %}{{ loop._iterator }}{% endfor %}",
    "{{ strftime_now('%1000000000Y') }}",
]
INCLUDES = [
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% block x %}{% endblock %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% call f() %}{% endcall %}",
    "{% filter upper %}{% endfilter %}",
]
LOOPS = [
    "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "{% for i in range(1000000000) %}{% endfor %}",
    "{% for i in [0] * 1000000000 %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% set l = ('ab ' * 20000) | list %}{% for i in range(90000) %}{% for x in l if false %}{% endfor %}{% endfor %}",
    *(
        BIG.replace("USE", use)
        for use in ("big | upper", "big.split()", "big[1:]", "'zz' in big", "big is eq big")
    ),
]
SIZES = [
    "{{ 'a' * 10000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ ('9' * 4000) | int * ('9' * 4000) | int }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 1.5 | round(1000000000) }}",
    "{{ ('a' * 60000).replace('a', 'b' * 60000) }}",
    "{{ ('a' * 60000) | replace('a', 'b' * 60000) }}",
    "{{ ['a' * 60000] * 60000 | join }}",
    "{{ ''.join(['a' * 60000] * 60000) }}",
    "{{ range(50000) | map('string') | join(',' * 1000000) }}",
    "{% for i in range(90000) %}" + "x" * 2000 + "{% endfor %}",
    "{{ [1] | tojson(indent=1000000000) }}",
    doubling("'a'", "ns.x ~ ns.x"),
    doubling("'a'", "ns.x + ns.x"),
    doubling("2", "ns.x * ns.x"),
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    # Lists that hold themselves twice, sixty times over.
    doubling("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    doubling("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
    doubling("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"),
    doubling("[1]", "[ns.x, ns.x]", "{{ ns.x is in [1] }}"),
    doubling("[1]", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | string }}"),
    doubling("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    doubling("(1,)", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    doubling("(1,)", "(ns.x, ns.x)", "{{ {}.get(ns.x) }}"),
]
BROKEN = [
    "{% if %}",
    "{{ 'a",
    "{% for %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ missing.x }}",
    "{{ 'a' + 1 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{% for x in [1] %}" * 50 + "{% endfor %}" * 50,
    "x" * 300_000,
]


@pytest.mark.parametrize(
    "source", [*ESCAPES, *INCLUDES, *LOOPS, *SIZES, *BROKEN], ids=lambda source: source[:60]
)
@pytest.mark.timeout(60)
def test_hostile(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenizerError, match=r"^the chat template") as error:
        render(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    if sys.platform == "linux":  # elsewhere the unit is another
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # 1 GiB, in KiB


def test_what_a_template_refuses_it_says() -> None:
    with pytest.raises(
        TokenizerError, match=r"^the chat template refuses the messages: only users may speak$"
    ):
        render("{{ raise_exception('only users\n may speak') }}")


def test_nothing_runs_while_a_template_is_compiled() -> None:
    for source in ("{{ raise_exception('x') }}", "{{ 'a' * 1000000000 }}", "{{ 'a' | upper }}"):
        SandboxedTemplate(source)


def test_a_long_conversation_is_no_attack() -> None:
    messages = [{"role": "user", "content": "word " * 2000}] * 500  # 5 million characters
    source = "{% for m in messages %}{% if m.content %}{{ m.content.strip() + '|' }}{% endif %}{% endfor %}"
    text = SandboxedTemplate(source).render({"messages": messages}, 5_000_000)
    assert text.count("|") == 500


def test_renderings_in_several_threads_have_their_own_allowances() -> None:
    shared = SandboxedTemplate("{% for i in range(20000) %}x{% endfor %}")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(shared.render({}, 0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["x" * 20000] * 3
