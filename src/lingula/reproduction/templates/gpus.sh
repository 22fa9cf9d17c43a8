#!/bin/bash
{% for line in about %}
{{ line }}
{% endfor %}
# Run it: bash FILE. Each of {{ gpus }} GPUs has one job at a time; when one ends, the next
# begins. Ctrl-C stops all of them, and the same script continues them. Logs:
# {{ logs | quote }}
mkdir -p {{ logs | quote }}
{% if weights %}
export LINGULA_WEIGHTS={{ weights | quote }}
{% endif %}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + {{ gpus - 1 }}) / {{ gpus }} ))}
one_on_each_gpu() {
  xargs --delimiter='\n' --max-procs={{ gpus }} \
    --process-slot-var=CUDA_VISIBLE_DEVICES --replace={} bash -c {}
}
{% for stage in stages %}

# {{ stage.name }}
{% if stage.alone %}
{% for command in stage.commands.values() %}
{{ command }} || exit
{% endfor %}
{% else %}
one_on_each_gpu <<'END' || exit
{% for name, command in stage.commands.items() %}
{{ command }} >> {{ (logs ~ "/" ~ name ~ ".log") | quote }} 2>&1 || { echo {{ (name ~ " failed: see its log") | quote }} >&2; exit 1; }
{% endfor %}
END
{% endif %}
{% endfor %}
