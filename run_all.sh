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
  RESULTS      folder of the tables and pictures; default Results/local, which git ignores
  PYTHON       makes .venv; default python3.11    VENV=none    no .venv: the python3 on the PATH as it is
  TRT_PYTHON   imports TensorRT; default python3  BUILD_FLAGS  to TensorRT/build.sh, e.g. --memPoolSize=workspace:8192
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
export TRT_PYTHON=${TRT_PYTHON:-python3}
RUN_ID=${RUN_ID:-$(date -u +%Y%m%d-%H%M%S)}; export RUN_ID  # shared by all rows that this run adds to Results/

# --- steps ---------------------------------------------------------------------------------------------------

# files TARGET...: have make make the files, two at a time: most steps keep one processor busy.
files() {
    local quiet=(-s)
    [[ $dry_run == no ]] || quiet=(-n)
    # make reads a dollar as its own
    FACTS=${facts//\$/\$\$} MODEL=${model//\$/\$\$} IMAGES=${images//\$/\$\$} make "${quiet[@]}" --no-print-directory -j 2 "$@"
}

# step WHAT OUTPUTS TABLES COMMAND...: measure or draw, unless that was done before with the same files. OUTPUTS and
# TABLES, which it adds rows to, have spaces between them.
step() {
    local what=$1 options=()
    # shellcheck disable=SC2206  # lists
    [[ -z $2 ]] || options+=(--output $2)
    # shellcheck disable=SC2206
    [[ -z $3 ]] || options+=(--rows $3)
    shift 3
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"; echo
    else
        python3 once.py --what "$what" --name "$name ${what}" "${options[@]}" --also "$machine" --from "${code[@]}" -- "$@"
    fi
}

# --- what this machine has -----------------------------------------------------------------------------------

plugins=TensorRT/Plugins/build/libswin_plugins.so
has_gpu() { nvidia-smi -L > /dev/null 2>&1; }

# What becomes of engines here: they are built and run, only built, or neither.
engines=run lacks=()
[[ $dry_run == yes ]] || command -v "$TRT_PYTHON" > /dev/null ||
    fail "TRT_PYTHON=$TRT_PYTHON: no such program; set it to the Python that imports TensorRT or TensorRT-RTX"
tensorrt=$("$TRT_PYTHON" TensorRT/check.py 2>&1) || engines=$([[ $? == 3 ]] && echo built || echo none)
[[ $engines == run ]] || lacks+=("$tensorrt")
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
short=() short_torch=() gpus=''
if has_gpu; then
    gpus=$(nvidia-smi -L)
else  # on a CPU, measure for a second, not until it is certain
    # shellcheck disable=SC2054  # the commas are meant
    short=(--batch 1,8 --min-seconds 1 --min-runs 10)
    # shellcheck disable=SC2054
    short_torch=("${short[@]}" --runner torch-eager,torch-script --precision fp32)
fi
images=''
((${#image_options[@]} == 0)) || images=$(printf %q "${image_options[1]}")
INT8_BATCHES=$(($(at_most "$(has_gpu && echo 512 || echo 64)") / 16)); export INT8_BATCHES

# --- the pipeline --------------------------------------------------------------------------------------------

code=(requirements.txt config.py utils.py models/*.py data/*.py graphs/*.py)  # what all that measure share
results=${RESULTS:-Results/local}  # what is measured here; the tables beside it hold what was measured for README

run_model() {  # the options that choose it
    local facts type weights model onnx kinds kind graphs plans=() measured=(--results "$results") machine=''
    facts=$(python3 models/facts.py "$@")
    read -r name type _ weights <<< "$facts"
    [[ " $* " == *" --resume "* || " $* " == *" --pretrained "* ]] || set -- "$@" --resume "$weights"
    model=$(printf '%q ' "$@") onnx=onnx/$name.onnx
    names+=("$name")
    echo
    echo "$name"

    graphs=("$onnx" "onnx/$name"_{layernorm,attention,int8,attention_int8,fp16,layernorm_fp16,attention_fp16}.onnx)
    files "${graphs[@]}" "data/$name-b1.npz" "data/${name}_int8-b1.npz"
    step "check against PyTorch" "" "" python3 onnx/onnx_test.py --onnx "$onnx" "$@"
    step "accuracy" "" "$results/accuracy.csv" python3 test_swinV2.py "$@" --device cpu --runner torch-fp32,onnx \
        --onnx "$onnx" "onnx/$name"_{attention,attention_fp16,attention_int8}.onnx --count "${count:-$(at_most 180)}" \
        "${image_options[@]}" "${label_options[@]}" "${measured[@]}"
    step "latency of PyTorch" "" "$results/latency.csv" python3 Torch_Latency.py "$@" "${short_torch[@]}" "${measured[@]}"
    step "latency of onnxruntime" "" "$results/latency.csv" python3 Onnx_Latency.py --onnx "$onnx" "${short[@]}" "${measured[@]}"
    step "picture" "$results/$name.png" "" python3 Results/draw.py images "$@" --onnx "$onnx" "onnx/${name}_attention_fp16.onnx" \
        "${image_options[@]}" --output "$results/$name.png"

    [[ $engines != none ]] || return 0
    kinds=("" _fp16)
    if [[ -f $plugins || -z $plugins_problem ]]; then
        kinds+=("$([[ $type == swinv2 ]] && echo _layernorm || echo _layernorm_fp16)" _attention_fp16 _attention_int8)
    fi
    for kind in "${kinds[@]}"; do plans+=("TensorRT/TRT_Engine/$name$kind.plan"); done
    files "${plans[@]}"
    [[ $engines == run ]] || return 0
    machine=$gpus
    step "accuracy of the engines" "" "$results/accuracy.csv" python3 test_swinV2.py "$@" --batch 32 \
        --runner torch-fp32,torch-fp16,engine --plan "${plans[@]}" --count "${count:-$(at_most 1800)}" \
        "${image_options[@]}" "${label_options[@]}" "${measured[@]}"
    all_plans+=("${plans[@]}")
}

names=() all_plans=()
if ((${#model_options[@]})); then
    run_model "${model_options[@]}"
else
    run_model --cfg models/swin_micro.yaml
    run_model --cfg models/swinv2_micro.yaml
fi
if ((${#all_plans[@]})); then
    name=engines machine=$gpus
    step "error and latency" "$results/encoderScore.txt" "$results/latency.csv" \
        "$TRT_PYTHON" TRT_test.py --plan "${all_plans[@]}" --results "$results"
    step "device memory" "" "$results/memory.csv" "$TRT_PYTHON" TRT_test.py --plan "${all_plans[@]}" --memory --results "$results"
fi
[[ $dry_run == no ]] || exit 0

# --- what came out -------------------------------------------------------------------------------------------

python3 Results/table.py "${names[@]}"
echo
printf "picture: $results/%s.png\\n" "${names[@]}"
if ((${#lacks[@]})); then
    echo
    case $engines in
        none) echo "Not done: TensorRT engines." ;;
        built) echo "Built, and not run: the engines in TensorRT/TRT_Engine. A GPU is needed to run them." ;;
        run) echo "Not done: TensorRT engines with plugins." ;;
    esac
    printf '  - %s\n' "${lacks[@]}"
fi
