#!/usr/bin/env bash
# Why does SwinV2 give NaN or wrong logits under TensorRT in FP16, and does the patched graph not? SWINV2.md tells.
#
#   bash TensorRT/swinv2_question.sh --cfg models/swinv2_micro.yaml               engines, on a GPU
#   bash TensorRT/swinv2_question.sh --cfg models/swinv2_micro.yaml --emulate     the same question asked of a CPU
#
# Has make make stressed weights (models/stress.py), graphs, engines and engines with marked tensors, run them, and compare
# (swinv2_question.mk), and writes swinv2_question.csv and swinv2_question_<model>.png in Results/local/. All else
# lies in .cache/swinv2_question/. Two calls for two models may run at once, each on its own GPU (CUDA_VISIBLE_DEVICES).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'U'
usage: bash TensorRT/swinv2_question.sh --cfg YAML [--resume FILE] [options]

  --cfg YAML, --resume FILE   the model, V1 or V2, and its weights; a micro model finds its own
  --weights LIST   of trained, overflow, and in V2 underflow, saturated; default all
  --engines LIST   of fp32          the graph in FP32, without TF32
                      opset12_fp16  its export at opset 12, built with --fp16: LayerNorm and F.normalize written out
                      opset17_fp16  its export at opset 17, built with --fp16: F.normalize written out
                      fp16          the FP16 graph of to_fp16.py, unpatched
                      attention_fp16  the FP16 graph with all plugins
                   default all
  --batches LIST   the batches that 16 held-out crops are run in, 1 to 16; default 1,16
  --layers LIST    of the engines, those whose tensors are compared one by one; default opset12_fp16,attention_fp16, as
                   TensorRT 8.6.0 builds no other in FP16 with its tensors marked; none for none
  --every N        of these, every n-th tensor; default 1
  --match REGEX    and only those whose name matches: fewer borders, where marking changes what an engine computes
  --jobs N         steps at the same time; default half as many as there are processors
  --emulate        no engines: every tensor rounded to FP16 on the CPU (TensorRT/emulate_fp16.py), of one crop
  --dry-run        print the commands instead of running them

environment: TRT_PYTHON imports tensorrt; BUILD_FLAGS go to TensorRT/build.sh; engines with marked tensors are built at
--builderOptimizationLevel=1 unless BUILD_FLAGS says another; RESULTS is the folder of the table and the picture,
default Results/local
U
}

fail() { echo "swinv2_question.sh: error: $*" >&2; exit 1; }

fp16_engines=opset12_fp16,opset17_fp16,fp16,attention_fp16
cfg='' resume='' weights='' engines=fp32,$fp16_engines batches='' layers='' every=1 match='' emulate=no dry_run=no
jobs=$((($(nproc) + 1) / 2))
while (($#)); do
    case $1 in
        --cfg | --resume)
            [[ -f ${2:-} ]] || fail "$1 ${2:-}: no such file"
            printf -v "${1#--}" %s "$(realpath --relative-base="$root" "$2")"; shift ;;
        --weights | --engines | --batches | --layers | --every | --match | --jobs)
            [[ -n ${2:-} ]] || fail "$1 needs a value"; printf -v "${1#--}" %s "$2"; shift ;;
        --emulate) emulate=yes ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage; exit ;;
        *) fail "$1: unknown option; --help lists them" ;;
    esac
    shift
done
[[ -n $cfg ]] || { usage >&2; exit 2; }
cd "$root"
images=16  # of the data; as in swinv2_table.py
if [[ $emulate == yes ]]; then
    for flag in batches layers match; do [[ -z ${!flag} ]] || fail "--$flag is of engines; --emulate takes none"; done
fi
batches=${batches:-1,$images} layers=${layers:-opset12_fp16,attention_fp16}
for flag in jobs every; do
    [[ ${!flag} =~ ^[1-9][0-9]*$ ]] || fail "--$flag ${!flag}: needs a positive whole number"
done
[[ $batches =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail "--batches $batches: needs positive whole numbers, as in 1,16"
largest=$(tr ',' '\n' <<< "$batches" | sort -n | tail -n 1)
((largest <= images)) || fail "--batches $batches: there are $images images"
TRT_PYTHON=${TRT_PYTHON:-python3}
read -ra build_flags <<< "${BUILD_FLAGS:-}"
layers_flags=("${build_flags[@]}")  # marked tensors change what is fused anyhow, and there are hundreds of kernels to time
[[ " ${build_flags[*]} " == *" --builderOptimizationLevel="* ]] || layers_flags+=(--builderOptimizationLevel=1)

facts=$(python3 models/facts.py --cfg "$cfg" ${resume:+--resume "$resume"})
read -r name type _ checkpoint <<< "$facts"
all_weights=trained,overflow
[[ $type == swinv1 ]] || all_weights+=,underflow,saturated
weights=${weights:-$all_weights}
has() { [[ ,$1, == *,"$2",* ]]; }  # LIST ITEM
check() {  # FLAG LIST ALLOWED
    local item
    for item in ${2//,/ }; do has "$3" "$item" || fail "$1 $item: choose from $3"; done
}
check --weights "$weights" "$all_weights"
check --engines "$engines" "fp32,$fp16_engines"
check --layers "$layers" "$fp16_engines,none"

results=${RESULTS:-Results/local}
work=.cache/swinv2_question plugins=TensorRT/Plugins/build/libswin_plugins.so
version=''
if [[ $emulate == no && $dry_run == no ]]; then  # said now, not after minutes of making graphs
    missing=()
    nvidia-smi > /dev/null 2>&1 || missing+=("a GPU that nvidia-smi knows")
    version=$("$TRT_PYTHON" -c 'from TensorRT import backend; print(backend.load().__version__)' 2> /dev/null) ||
        missing+=("tensorrt in $TRT_PYTHON (set TRT_PYTHON)")
    ! has "$engines" attention_fp16 || [[ -f $plugins ]] || missing+=("$plugins (make -C TensorRT/Plugins)")
    ((${#missing[@]} == 0)) || fail "engines need what is missing here: $(printf '%s; ' "${missing[@]}")--emulate" \
        "asks a CPU"
fi

# --- what is asked for ---------------------------------------------------------------------------------------

answers=()  # logits of the engines, and tables of their tensors
for weight in ${weights//,/ }; do
    for engine in ${engines//,/ }; do
        answer=${name}_${weight}_$engine
        if [[ $emulate == yes ]]; then
            [[ $engine == fp32 || $engine == fp16 ]] || answers+=("$work/layers_${answer}_emulated.csv")
        else
            answers+=("$work/$answer-b$batches.npy")
            ! has "$layers" "$engine" || answers+=("$work/layers_$answer.csv")
        fi
    done
done

# make reads a dollar as its own.
model=$(printf '%q ' --cfg "$cfg" --resume "$checkpoint") yaml=$(printf %q "$cfg")
export FACTS=${facts//\$/\$\$} MODEL=${model//\$/\$\$} CFG=${yaml//\$/\$\$} MATCH=${match//\$/\$\$} EVERY=$every TRT_PYTHON
export BUILD_FLAGS="${build_flags[*]} --max $largest" MARKED_FLAGS="${layers_flags[*]} --max 1"
ask=(make -k -s -j "$jobs" --no-print-directory ONNX="$work" DATA="$work" BATCHES="$images" RUN_BATCHES="$batches" "${answers[@]}")
if [[ $dry_run == yes ]]; then
    "${ask[@]}" -n
    exit
fi

end_make() {  # with all that it has started
    kill -TERM -- -"$making" 2> /dev/null || return 0
    sleep 0.5  # build.sh removes what is half written
    kill -KILL -- -"$making" 2> /dev/null || true  # the other signal is lost on a process that is just being forked
}

mkdir -p $work
echo "$name, weights: ${weights//,/, }; up to $jobs steps at a time"
MADE=$(mktemp); export MADE
set -m  # make is a process group then
"${ask[@]}" & making=$!
set +m
trap 'end_make; rm -f "$MADE"' EXIT
wait $making || true  # that an engine cannot be built is an answer too

made=() missing=() panels=()
for answer in "${answers[@]}"; do
    if grep -qxF "$answer" "$MADE"; then made+=("$answer"); else missing+=("$answer"); fi
done
((${#made[@]})) || fail "nothing could be made; the logs are in .cache/logs/"
python3 TensorRT/swinv2_table.py --model "$name" ${version:+--tensorrt "$version"} --output "$results/swinv2_question.csv" "${made[@]}"
for weight in ${weights//,/ }; do
    tables=()
    for answer in "${made[@]}"; do
        [[ $answer != $work/layers_${name}_${weight}_* ]] || tables+=("$answer")
    done
    ((${#tables[@]} == 0)) || panels+=(--panel "$name, weights: $weight" "${tables[@]}")
done
((${#panels[@]} == 0)) || python3 TensorRT/compare_layers.py plot "${panels[@]}" --tolerance 0.1 \
    --output "$results/swinv2_question_$name$([[ $emulate == no ]] || echo _emulated).png"
((${#missing[@]} == 0)) || fail "could not be made: ${missing[*]}; their logs are in .cache/logs/"
