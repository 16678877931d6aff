"""Chat templates that behave as released ones do, for the tests of rendering."""

from __future__ import annotations

_CONTENT = """\
{%- macro shown(content, media) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if media and (part.type == 'image' or 'image' in part) -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif media and (part.type == 'video' or 'video' in part) -%}<|video_pad|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_ENDING = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"

QWEN3_VL = (
    _CONTENT
    + """\
{%- if messages[0].role == 'system' -%}
{{ '<|im_start|>system\\n' }}{{ shown(messages[0].content, false) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ '<|im_start|>user\\n' }}{{ shown(message.content, true) }}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}{{ shown(message.content, false) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
"""
    + _ENDING
)
"""Qwen3-VL Instruct's: a system prompt is the first message or is dropped, only users show media."""
QWEN3_VL_TAGGED = QWEN3_VL.replace(
    "{{ shown(message.content, false) }}{{ '<|im_end|>\\n' }}\n{%- endif -%}\n{%- endfor -%}",
    "{%- generation -%}{{ shown(message.content, false) }}{{ '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}\n"
    "{%- endif -%}\n{%- endfor -%}",
)
"""The same, with the marks by which transformers finds what an assistant says."""
QWEN3_5 = (
    _CONTENT
    + """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}{%- generation -%}
{%- if loop.index0 > last.user -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{{ shown(message.content, false) | trim }}{{ '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}
{%- else -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' }}{{ shown(message.content, true) | trim }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
"""
    + _ENDING
)
"""As Qwen3.5's: after the last user's turn alone the assistant thinks, so that a prefix is no prefix of the whole."""
