#!/usr/bin/env bash
# Everything that README shows of a GPU, measured in one run.
#
#   bash TensorRT/measure_gpu.sh V1.safetensors V2.safetensors      the checkpoints of both Small models; one that is not
#                                                                   there is trained (models/train.py)
#
# With one GPU: the files, then what is timed, then the rest. With two of a kind (OTHER=1) the second one does all but what
# is timed, meanwhile. What bears nothing beside it on its GPU comes last: device memory and the sanitizers. A step that
# fails does not stop the others; which did stands at the end, and the exit status is 1. The same command with RUN_ID=...
# goes on: what is done is not done again. Logs are in .cache/logs/. Rows go to $RESULTS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'X'
usage: bash TensorRT/measure_gpu.sh V1 V2 [STEP...]       all steps, or these

environment: RUN_ID    the run; default date and time             RESULTS    folder of the tables; default Results
             TIMED, OTHER  the GPUs, by number; default 0 and TIMED         BATCHES  of the race; default 1,8,32,128
             ORT_PATH  a folder with onnxruntime-gpu, where python3 has another onnxruntime
             SANITIZER compute-sanitizer; that of CUDA 13.0 fails at PyTorch's own products under racecheck, 2026.4 does not
             TRT_PYTHON, BUILD_FLAGS, SWIN_KERNELS as everywhere
X
}
(($# >= 2)) || { usage >&2; exit 2; }
v1=$1 v2=$2 chosen=" ${*:3} "
export RESULTS=${RESULTS:-Results}
export RUN_ID=${RUN_ID:-$(date -u +%Y%m%d-%H%M%S)} TRT_PYTHON=${TRT_PYTHON:-python3}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/.cache/inductor}
export INT8_FLAGS="--calibration-batches 8 --provider cpu"  # what README's INT8 is calibrated with
timed=${TIMED:-0} batches=${BATCHES:-1,8,32,128}
other=${OTHER:-$timed} failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
# A sanitizer holds on to memory as long as a process runs: each test has one of its own. PyTorch would keep memory for
# itself, where a sanitizer sees no border, and without that no CUDA graph can be captured.
# shellcheck disable=SC2016
sanitized='tests=$(python3 -m pytest -m gpu -q tests/test_kernels_gpu.py tests/test_int8_kernels_gpu.py --collect-only -k "$2" |
    grep ::) && echo "$tests" | xargs -d "\n" -n 1 -P 3 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "${SANITIZER:-compute-sanitizer}" --tool "$1" --error-exitcode 1 --kernel-name kns=swin python3 -m pytest -m gpu -q'

# step NAME COMMAND...: do it, unless this run has done it.
step() {
    if [[ $chosen != "  " && $chosen != *" $1 "* ]]; then return; fi
    local name=$1
    shift
    if [[ $1 == sanitized ]]; then shift; set -- bash -c "$sanitized" _ "$@"; fi
    python3 once.py --what "$name" --name "$RUN_ID $name" --also "$RUN_ID" -- "$@" 2> /dev/null || echo "$name" >> "$failed"
}

plans=TensorRT/TRT_Engine
race=(python3 race.py --resume "$v1" "$v2" --run-id "$RUN_ID" --batch "$batches" --results "$RESULTS")
race_ort=(env PYTHONPATH="${ORT_PATH:-}:${PYTHONPATH:-}" "${race[@]}" --runner ort-cuda)
of1=(--cfg models/swin.yaml --resume "$v1") of2=(--cfg models/swinv2.yaml --resume "$v2")
make1=(make -k -j 4 MODEL="$(printf '%q ' "${of1[@]}")" BATCHES="${batches//,/ }")
make2=(make -k -j 4 MODEL="$(printf '%q ' "${of2[@]}")" BATCHES="${batches//,/ }")

# --- files: those of the patched engines first, for which the race waits ---------------------------------------

files() {
    local batch timm1=() timm2=()
    for batch in ${batches//,/ }; do
        timm1+=("$plans/swinv1_timm_b${batch}_fp16.plan") timm2+=("$plans/swinv2_timm_b${batch}_fp16.plan")
    done
    [[ -f $v1 ]] || step train-v1 python3 models/train.py --type swinv1 --lr 1e-3 --steps 400 --output "$v1"
    [[ -f $v2 ]] || step train-v2 python3 models/train.py --type swinv2 --lr 1e-3 --steps 400 --output "$v2"
    step patched-v1 "${make1[@]}" $plans/swinv1_attention_{fp16,int8}.plan data
    step patched-v2 "${make2[@]}" $plans/swinv2_attention_{fp16,int8}.plan data
    step compile-fp16 "${race[@]}" --prepare --runner torch-compile --precision fp16
    step engines-v1 "${make1[@]}" $plans/swinv1{,_fp16,_attention,_layernorm_fp16}.plan "${timm1[@]}"
    step engines-v2 "${make2[@]}" $plans/swinv2{,_fp16,_attention,_layernorm}.plan "${timm2[@]}"
    step compile-fp32 "${race[@]}" --prepare --runner torch-compile --precision fp32
}

# --- what is timed: one at a time, FP16 before FP32, which counts less -------------------------------------------

timed() {
    step race-plugins-fp16 "${race[@]}" --runner trt-plugins --precision fp16
    step race-plugins-int8 "${race[@]}" --runner trt-plugins --precision int8
    step race-compile-fp16 "${race[@]}" --runner torch-compile --precision fp16 --mode reduce-overhead
    step race-timm-fp16 "${race[@]}" --runner trt-timm --precision fp16
    step race-trt-fp16 "${race[@]}" --runner trt --precision fp16
    step race-autotune-fp16 "${race[@]}" --runner torch-compile --precision fp16 --mode max-autotune
    step kernels python3 TensorRT/Plugins/benchmark.py --batch 32 --results "$RESULTS"  # and the GPU's peaks, which profiles are held against
    step profile "$TRT_PYTHON" TensorRT/profile_engine.py --results "$RESULTS" \
        --plan $plans/swinv{1,2}_{attention_fp16,attention_int8,fp16}.plan
    step race-torch-fp16 "${race[@]}" --runner torch-eager,torch-script --precision fp16
    step race-ort-fp16 "${race_ort[@]}" --precision fp16
    step race-trt-fp32 "${race[@]}" --runner trt-plugins,trt --precision fp32
    step race-compile-fp32 "${race[@]}" --runner torch-compile --precision fp32 --mode reduce-overhead
    step race-torch-fp32 "${race[@]}" --runner torch-eager,torch-script --precision fp32
    step race-ort-fp32 "${race_ort[@]}" --precision fp32
    step race-autotune-fp32 "${race[@]}" --runner torch-compile --precision fp32 --mode max-autotune
}

# --- the rest ----------------------------------------------------------------------------------------------------

rest() {
    local engines1=("$plans"/swinv1{,_fp16,_layernorm_fp16,_attention_fp16}.plan) cfg
    local engines2=("$plans"/swinv2{,_fp16,_layernorm,_attention_fp16}.plan)
    # shellcheck disable=SC2054  # the commas are meant
    local accuracy=(python3 test_swinV2.py --batch 1,4,8,16,32,128 --results "$RESULTS")
    local kernel_tests=(python3 -m pytest -m gpu -q tests/test_kernels_gpu.py tests/test_int8_kernels_gpu.py)
    local engine_tests=("$TRT_PYTHON" -m pytest --noconftest -m gpu -rs -v tests/test_engines_gpu.py tests/test_int8_cache_gpu.py)
    step accuracy-v1 "${accuracy[@]}" "${of1[@]}" --count 2000 --runner torch-fp32,torch-fp16,engine --plan "${engines1[@]}"
    step accuracy-v2 "${accuracy[@]}" "${of2[@]}" --count 2000 --runner torch-fp32,torch-fp16,engine --plan "${engines2[@]}"
    step accuracy-int8-v1 "${accuracy[@]}" "${of1[@]}" --count 5000 --runner torch-fp32,engine --plan $plans/swinv1_attention_int8.plan
    step accuracy-int8-v2 "${accuracy[@]}" "${of2[@]}" --count 5000 --runner torch-fp32,engine --plan $plans/swinv2_attention_int8.plan
    step kernel-tests "${kernel_tests[@]}"
    for cfg in swinv2_micro swin_micro; do step question-$cfg bash TensorRT/swinv2_question.sh --cfg models/$cfg.yaml; done
    step micro env VENV=none RUN_ID="$RUN_ID-micro" bash run_all.sh
    step engine-tests "${engine_tests[@]}" -k "not memory"
    step memory "$TRT_PYTHON" TRT_test.py --memory --results "$RESULTS" \
        --plan "${engines1[@]}" "${engines2[@]}" $plans/swinv{1,2}_attention_int8.plan
    step memory-tests "${engine_tests[@]}" -k memory
    step memcheck sanitized memcheck "not 2_to_the_31 and not cuda_graph"
    # racecheck looks at shared memory within one launch. Hundreds of launches take it many minutes, and it may lose track
    # of two streams; the tests of these run no kernel that others do not.
    step racecheck sanitized racecheck "not 2_to_the_31 and not cuda_graph and not two_streams and not one_after_the_other"
}

on_gpu() {  # NUMBER LIST...: these lists of steps, with no other GPU in sight
    local list
    export CUDA_VISIBLE_DEVICES=$1
    for list in "${@:2}"; do $list; done
}

echo "run $RUN_ID"
if [[ $other == "$timed" ]]; then
    on_gpu "$timed" files timed rest
else
    on_gpu "$other" files rest & on_gpu "$timed" timed
    wait
fi
step draw bash -c 'python3 Results/draw.py profile && python3 Results/draw.py latency && python3 Results/report.py --write'
if [[ -s $failed ]]; then
    echo "measure_gpu.sh: error: failed: $(paste -sd ' ' "$failed"); RUN_ID=$RUN_ID goes on; logs are in .cache/logs/" >&2
    exit 1
fi
