#!/bin/bash
#SBATCH --job-name=lingula
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
{% for line in header %}
{{ line }}
{% endfor %}
#
{% for line in about %}
{{ line }}
{% endfor %}
# Submit it on a login node: bash {{ file | quote }}
# It submits itself as one job array per stage, each after the one before. A job that is
# preempted, or stopped by its time limit, is queued again and continues where it stopped.
# After a failure the same command does what is left.

logs={{ logs | quote }}
stage=${1:-submit}
if [ "$stage" = submit ]; then
  set -o pipefail
  mkdir -p "$logs"
  script=$(realpath "$0")
  submit() {  # a stage, its last index, and the job that it waits for
    sbatch --parsable --array="0-$2" --output="$logs/$1-%a.log" \
      ${3:+--dependency="afterok:$3" --kill-on-invalid-dep=yes} "$script" "$1" \
      | cut -d ';' -f 1
  }
{% for stage in stages %}
  {{ stage.name }}=$(submit {{ stage.name }} {{ stage.commands | length - 1 }}{% if not loop.first %} "${{ loop.previtem.name }}"{% endif %}) || exit
  echo "{{ stage.name }}: {{ stage.commands | length }} to do, job array ${{ stage.name }}"
{% endfor %}
  echo "logs: $logs"
  exit
fi

{% for line in setup %}
{{ line }}
{% endfor %}
{% if weights %}
export LINGULA_WEIGHTS={{ weights | quote }}
{% endif %}
# srun does not take this over from sbatch by itself.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
run() {
  srun "$@"
  status=$?
  # 143: it was told to stop, and saved its state. The same command continues from there.
  if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit "$status"
}

case "$stage ${SLURM_ARRAY_TASK_ID:-0}" in
{% for stage in stages %}
{% for name, command in stage.commands.items() %}
"{{ stage.name }} {{ loop.index0 }}")  # {{ name }}
  run {{ "--ntasks=1 --nodes=1 " if stage.alone }}{{ command }}
  ;;
{% endfor %}
{% endfor %}
*)
  echo "There is no job $stage ${SLURM_ARRAY_TASK_ID:-0}." >&2
  exit 2
  ;;
esac
