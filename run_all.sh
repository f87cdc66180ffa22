#!/usr/bin/env bash
# From a checkpoint to a verified ONNX model, patched graphs and engines, with a table and a picture at the end.
#
#   bash run_all.sh                                          # both micro models, which ship with their weights
#   bash run_all.sh --cfg models/swinv2.yaml --resume FILE   # a real checkpoint
#
# A step whose inputs have not changed is not done again. Each prints one line; all of its output is in .cache/logs/.
set -euo pipefail

usage() {
    cat <<'X'
usage: bash run_all.sh [model options] [--images FOLDER] [--labels FILE] [--count N] [--dry-run]

  --cfg YAML, --type swinv1|swinv2, --resume FILE, --pretrained
                   the model and its weights, as every script takes them; default: both micro models
  --images FOLDER  real images, one folder per class or flat; default: crops of the packaged photographs
  --labels FILE    of --images: lines `path-in-the-folder class-index`
  --count N        images that accuracy is measured on; default 180, of an engine 1800, or all of fewer --images
  --dry-run        print the commands of all steps instead of running them; .venv and the weights must be there for
                   that, and are fetched where they are not

environment:
  PYTHON       makes .venv; default python3.11    VENV=none    no .venv: the python3 on the PATH as it is
  TRT_PYTHON   imports tensorrt; default python3  BUILD_FLAGS  to TensorRT/build.sh, e.g. --memPoolSize=workspace:8192
X
}

fail() { echo "run_all.sh: error: $*" >&2; exit 1; }

model_options=() image_options=() label_options=() count='' dry_run=no
while (($#)); do
    case $1 in
        --cfg | --resume | --images | --labels)
            [[ -e ${2:-} ]] || fail "$1 ${2:-}: no such file or folder"
            path=$(realpath "$2")
            case $1 in
                --images) image_options=(--images "$path") ;;
                --labels) label_options=(--labels "$path") ;;
                *) model_options+=("$1" "$path") ;;
            esac
            shift ;;
        --type) [[ -n ${2:-} ]] || fail "--type needs swinv1 or swinv2"; model_options+=("$1" "$2"); shift ;;
        --count) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--count needs a positive whole number, not '${2:-}'"; count=$2; shift ;;
        --pretrained) model_options+=("$1") ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage; exit ;;
        *) fail "$1: unknown option; --help lists them" ;;
    esac
    shift
done

((${#image_options[@]} || ${#label_options[@]} == 0)) || fail "--labels needs --images: they are of its files"

cd "$(dirname "${BASH_SOURCE[0]}")"
. ./setup.sh
use_packages requirements.txt
mkdir -p .cache/logs .cache/stamps
export TRT_PYTHON=${TRT_PYTHON:-python3}
RUN_ID=${RUN_ID:-$(date -u +%Y%m%d-%H%M%S)}; export RUN_ID  # shared by all rows that this run adds to Results/
read -ra build_flags <<< "${BUILD_FLAGS:-}"

# --- steps ---------------------------------------------------------------------------------------------------

# What those of the words hold that are files; of a folder, the names, sizes and times of what is in it.
fingerprint() {
    local word
    for word in "$@"; do
        if [[ $word == --*=* ]]; then word=${word#*=}; fi
        if [[ -f $word ]]; then sha256sum < "$word"; fi
        if [[ -d $word ]]; then find "$word" -type f -printf '%P %s %T@\n' | sort; fi
    done
}

# still_there RUN FILE...: all files are there, and the tables among them have rows of that run and of $name, if that is
# a model.
still_there() {
    local run=$1 file
    shift
    for file in "$@"; do
        [[ -f $file ]] || return 1
        [[ $file != *.csv ]] || grep -q "^$run,$([[ $name == engines ]] || echo ".*,$name,")" "$file" || return 1
    done
}

# step WHAT OUTPUTS COMMAND...: run the command, unless it ran on the same inputs before and all OUTPUTS (with spaces
# between them) are still there. Inputs are its words, the files among them (so none of OUTPUTS may be), and, in $key,
# those of the steps before it.
step() {
    local what=$1 outputs=$2 log stamp old_key='' old_run='' begun=$SECONDS how
    shift 2
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"; echo
        return
    fi
    log=.cache/logs/$name-${what// /-}.log stamp=.cache/stamps/$name-${what// /-}
    key=$({ echo "$key"; printf '%s\n' "$@"; fingerprint "$@"; } | sha256sum | cut -c1-64)
    if [[ -f $stamp ]]; then read -r old_key old_run < "$stamp"; fi
    printf '  %-28s' "$what"
    # shellcheck disable=SC2086  # OUTPUTS is a list
    if [[ $old_key == "$key" ]] && still_there "$old_run" $outputs; then
        how='as before'
    else
        rm -f "$stamp"
        if ! "$@" > "$log" 2>&1; then
            echo "FAILED"
            tail -n 15 "$log" >&2
            fail "$name: $what failed; all of its output is in $log"
        fi
        echo "$key $RUN_ID" > "$stamp"
        how="$((SECONDS - begun)) s"
    fi
    printf '%9s  %s\n' "$how" "$(grep -E '^(wrote|PASS|added)' "$log" | tail -n 1)"
}

# --- what this machine has -----------------------------------------------------------------------------------

plugins=TensorRT/Plugins/build/libswin_plugins.so
has_gpu() { nvidia-smi -L > /dev/null 2>&1; }

engines=yes lacks=()
has_gpu || { engines=no; lacks+=("an NVIDIA GPU: nvidia-smi finds none; run this on a machine that has one"); }
"$TRT_PYTHON" -c 'import tensorrt' > /dev/null 2>&1 ||
    { engines=no; lacks+=("TensorRT: $TRT_PYTHON cannot import it; set TRT_PYTHON to a Python that can"); }
# What keeps make from building the plugins, in its own words; nothing where it can.
plugins_problem=$(make -s -n -C TensorRT/Plugins 2>&1 > /dev/null | sed -n 's/.*\*\*\* \(.*\)\.  Stop\.$/\1/p; /not found/p' || true)
[[ -z $plugins_problem || -f $plugins ]] || lacks+=("what builds the plugins: $plugins_problem")
# at_most N: N, or as many as --images holds, if that is fewer.
at_most() { if [[ -n $images_there ]] && ((images_there < $1)); then echo "$images_there"; else echo "$1"; fi; }
images_there=''
if ((${#image_options[@]})); then
    images_there=$(python3 -c '
import sys
from data.images import list_images
from utils import run_script
sys.argv[0] = "run_all.sh"
run_script(lambda: print(len(list_images(sys.argv[1]))))' "${image_options[1]}")
    ((images_there >= 16)) || fail "${image_options[1]}: holds $images_there images; INT8 is calibrated on 16 or more"
    ((${count:-0} <= images_there)) || fail "--count $count: ${image_options[1]} holds $images_there images"
fi
short=()  # on a CPU, measure for a second, not until it is certain
# shellcheck disable=SC2054  # the commas are meant
has_gpu || short=(--batch 1,8 --min-seconds 1 --min-runs 10)

# --- the pipeline --------------------------------------------------------------------------------------------

code=(requirements.txt config.py utils.py models/*.py data/{batches,images,photo_crops}.py graphs/*.py onnx/graphsurgeon/*.py
    TensorRT/INT8/*.py)  # shared by scripts

run_model() {  # the options that choose it
    local facts type size weights model onnx layernorm suffix calibration narrow=() plans=()
    facts=$(python3 models/facts.py "$@")
    read -r name type size weights <<< "$facts"
    onnx=onnx/$name.onnx key=$(fingerprint "${code[@]}")
    model=("$@")
    [[ " $* " == *" --resume "* || " $* " == *" --pretrained "* ]] || model+=(--resume "$weights")
    names+=("$name")
    echo
    echo "$name"

    step "export" "$onnx" python3 onnx/export_onnx.py "${model[@]}"
    step "check against PyTorch" "" python3 onnx/onnx_test.py --onnx "$onnx" "${model[@]}"
    step "data" "data/$name-b1.npz data/$name-b16.npz" python3 data/batch_data_gen.py --model "$onnx" "${image_options[@]}"
    step "LayerNorm plugin" "onnx/${name}_layernorm.onnx" \
        python3 onnx/graphsurgeon/add_every_layernorm.py --onnx "$onnx"
    step "all plugins" "onnx/${name}_attention.onnx" python3 onnx/graphsurgeon/add_all.py --onnx "$onnx"
    # By itself quant.py leaves narrow blocks in FP16. The micro models have hardly others, and show every INT8 node.
    if [[ $name == *_micro ]]; then narrow=(--narrow); fi
    calibration=$(at_most "$(has_gpu && echo 512 || echo 64)")
    step "INT8" "onnx/${name}_int8.onnx TensorRT/INT8/$name.cache" python3 TensorRT/INT8/quant.py --onnx "$onnx" \
        --recalibrate "${narrow[@]}" --batches $((calibration / 16)) "${image_options[@]}"
    step "INT8 data" "data/${name}_int8-b1.npz data/${name}_int8-b16.npz" \
        python3 data/batch_data_gen.py --model "onnx/${name}_int8.onnx" "${image_options[@]}"
    step "INT8 attention" "onnx/${name}_attention_int8.onnx" \
        python3 onnx/graphsurgeon/add_int8.py --onnx "onnx/${name}_int8.onnx"
    for suffix in "" _layernorm _attention; do
        step "FP16${suffix/_/ }" "onnx/$name${suffix}_fp16.onnx" \
            python3 onnx/graphsurgeon/to_fp16.py --onnx "onnx/$name$suffix.onnx"
    done
    step "accuracy" Results/accuracy.csv python3 test_swinV2.py "${model[@]}" --device cpu --runner torch-fp32,onnx \
        --onnx "$onnx" "onnx/${name}_attention.onnx" "onnx/${name}_attention_fp16.onnx" \
        "onnx/${name}_attention_int8.onnx" --count "${count:-$(at_most 180)}" \
        "${image_options[@]}" "${label_options[@]}"
    if has_gpu; then
        step "latency of PyTorch" Results/latency.csv python3 Torch_Latency.py "${model[@]}"
    else
        step "latency of PyTorch" Results/latency.csv python3 Torch_Latency.py "${model[@]}" "${short[@]}" \
            --runner torch-eager,torch-script --precision fp32
    fi
    step "latency of onnxruntime" Results/latency.csv python3 Onnx_Latency.py --model "$onnx" "${short[@]}"
    step "picture" "Results/$name.png" python3 Results/draw.py "${model[@]}" \
        --onnx "$onnx" "onnx/${name}_attention_fp16.onnx" "${image_options[@]}"

    [[ $engines == yes ]] || return 0
    # An engine is for one GPU and one version of TensorRT.
    key+=$(fingerprint TensorRT/*.py; nvidia-smi -L; "$TRT_PYTHON" -c 'import tensorrt; print(tensorrt.__version__)')
    layernorm=_layernorm; [[ $type == swinv2 ]] || layernorm=_layernorm_fp16
    for suffix in "" _fp16 "$layernorm" _attention_fp16 _attention_int8; do
        build_engine "$name$suffix" "$size"
    done
    step "accuracy of the engines" Results/accuracy.csv python3 test_swinV2.py "${model[@]}" --batch 32 \
        --runner torch-fp32,torch-fp16,engine --plan "${plans[@]}" --count "${count:-$(at_most 1800)}" \
        "${image_options[@]}" "${label_options[@]}"
    all_plans+=("${plans[@]}")
}

build_engine() {  # name of the graph, image size
    local graph=$1 flags=(--size "$2" --noTF32)
    if [[ $graph == *_fp16 || $graph == *_int8 ]]; then flags=(--size "$2" --fp16); fi
    case $graph in *_layernorm* | *_attention*)
        if [[ ! -f $plugins && -n $plugins_problem ]]; then return; fi
        flags+=("--plugins=$plugins") ;;
    esac
    plans+=("TensorRT/TRT_Engine/$graph.plan")
    step "engine${graph#"$name"}" "${plans[-1]}" \
        bash TensorRT/build.sh "onnx/$graph.onnx" "${flags[@]}" "${build_flags[@]}"
}

names=() all_plans=()
if [[ $engines == yes && -z $plugins_problem ]]; then
    name=plugins key=$(fingerprint TensorRT/Plugins/Makefile TensorRT/Plugins/*/*.{cu,cuh,cpp,h})
    step "plugins" "$plugins" make -C TensorRT/Plugins
fi
if ((${#model_options[@]})); then
    run_model "${model_options[@]}"
else
    run_model --cfg models/swin_micro.yaml
    run_model --cfg models/swinv2_micro.yaml
fi
if ((${#all_plans[@]})); then
    name=engines
    step "error and latency" Results/encoderScore.txt "$TRT_PYTHON" TRT_test.py --plan "${all_plans[@]}"
    step "device memory" Results/memory.csv "$TRT_PYTHON" TRT_test.py --plan "${all_plans[@]}" --memory
fi
[[ $dry_run == no ]] || exit 0

# --- what came out -------------------------------------------------------------------------------------------

python3 Results/table.py "${names[@]}"
echo
printf 'picture: Results/%s.png\n' "${names[@]}"
if ((${#lacks[@]})); then
    echo
    echo "Not done: TensorRT engines$([[ $engines == no ]] || echo " with plugins"). This machine lacks"
    printf '  - %s\n' "${lacks[@]}"
fi
