#!/usr/bin/env bash
# Builds a TensorRT engine from an ONNX file of this project: the one real builder, which build_*.sh call.
#
#   TensorRT/build.sh onnx/swinv1_micro_fp16.onnx      writes TensorRT/TRT_Engine/swinv1_micro_fp16.plan
#
# Beside the plan it leaves the builder's .log, a .layers.json that describes every layer, and a .json of the facts that
# TRT_test.py and test_swinV2.py go by. It runs trtexec where that is on the PATH, else TensorRT/build_engine.py, with the
# same flags, in $TRT_PYTHON (default python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'X'
usage: TensorRT/build.sh MODEL.onnx [options] [builder options]

  MODEL.onnx          relative to the repository's root, or absolute; whatever its name, its input's name, its image
                      size, its batch where that is fixed, and its precision are read from it (graphs/facts.py)
  --size PIXELS       height and width of the images, or HxW: of a graph that leaves them open, an engine of one size
  --sizes HxW,HxW     of such a graph: sizes that the engine takes, and all between, chosen for the first
  --min-size, --opt-size, --max-size HxW
                      the same by its smallest, usual (default: the largest) and largest size
  --min, --opt, --max N
                      smallest, usual and largest batch of the optimization profile; default 1, 32, 128
  --fp16              permit FP16 in an FP32 graph (TensorRT 8.6 only; an FP16 graph needs no flag)
  --plugins[=LIB]     the graph holds plugin nodes; default TensorRT/Plugins/build/libswin_plugins.so
  --carry-plugins     put that library into the plan, which then needs no other file
  --backend NAME      tensorrt or tensorrt_rtx, for TensorRT/build_engine.py; default: the first that is installed
  --output PLAN       the engine; default TensorRT/TRT_Engine/MODEL.plan, with _fp16 added where --fp16 permits it
  --facts JSON        the graph's facts, which graphs/facts.py printed elsewhere: where no Python has onnx
  --dry-run           print the command instead of running it

Builder options, --flag=value, go to the builder as they are: --noTF32, --memPoolSize=workspace:MIB (default 4096),
--maxAuxStreams=N (default 0 with --plugins, else TensorRT's own), --builderOptimizationLevel=0-5,
--tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN (8.6 and 10, where those libraries are missing; 11 has none of them),
--timingCacheFile=FILE (default none: 8.6.0 could not read those that it had saved),
--profilingVerbosity=..., --verbose.
X
}

fail() { echo "build.sh: error: $*" >&2; exit 1; }

sides='^[1-9][0-9]*(x[1-9][0-9]*)?$'
onnx='' size='' sizes='' min_size='' opt_size='' max_size='' min=1 opt='' max=128 fp16=no plugins='' carry=no backend=() plan='' facts='' dry_run=no passed=()
while (($#)); do
    case $1 in
        --size | --min-size | --opt-size | --max-size)
            [[ ${2:-} =~ $sides ]] || fail "$1 needs pixels, or HxW, not '${2:-}'"
            name=${1#--}; value=$2; [[ $value == *x* ]] || value=${value}x$value
            printf -v "${name/-/_}" %s "$value"; shift ;;
        --sizes)
            IFS=, read -ra given <<< "${2:-}"
            [[ -n ${2:-} ]] || fail "--sizes needs HxW,HxW"
            for value in "${given[@]}"; do
                [[ $value =~ $sides ]] || fail "--sizes needs HxW,HxW, not '$2'"
                [[ $value == *x* ]] || value=${value}x$value
                sizes+=" $value"
            done; shift ;;
        --min | --opt | --max)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "$1 needs a positive whole number, not '${2:-}'"
            printf -v "${1#--}" %s "$2"; shift ;;
        --output) [[ -n ${2:-} ]] || fail "--output needs a path"; plan=$2; shift ;;
        --fixed) ;;  # a batch that was fixed at export is read from the graph
        --fp16) fp16=yes ;;
        --plugins) plugins=TensorRT/Plugins/build/libswin_plugins.so ;;
        --plugins=*) plugins=${1#*=} ;;
        --carry-plugins) carry=yes ;;
        --backend) [[ ${2:-} =~ ^tensorrt(_rtx)?$ ]] || fail "--backend needs tensorrt or tensorrt_rtx, not '${2:-}'"
                   backend=(--backend "$2"); shift ;;
        --facts) [[ -f ${2:-} ]] || fail "--facts ${2:-}: no such file"; facts=$(realpath "$2"); shift ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage; exit ;;
        -*) passed+=("$1") ;;
        *) [[ -z $onnx ]] || fail "two graphs, $onnx and $1; a builder option is written --flag=value"; onnx=$1 ;;
    esac
    shift
done

cd "$root"
[[ -n $onnx ]] || { usage >&2; exit 2; }
model=$(basename "$onnx" .onnx)
[[ -n $opt ]] || opt=$((max < 32 ? max : min > 32 ? min : 32))
((min <= opt && opt <= max)) || fail "--min $min, --opt $opt, --max $max are not in this order"
[[ $carry == no || -n $plugins ]] || fail "--carry-plugins: says nothing without --plugins"
[[ -f $onnx ]] || fail "$onnx: no such file; make it with: make $onnx (the Makefile says how)"
[[ $dry_run == yes || -z $plugins || -f $plugins ]] || fail "$plugins: no such file; make it with: make -C TensorRT/Plugins"

# What the graph says of itself; what it leaves open is an empty line (the last of which $( ) would strip).
python=''  # one that has onnx, which the one with TensorRT often lacks
for candidate in "$root/.venv/bin/python3" python3 "${TRT_PYTHON:-python3}"; do
    if [[ -z $python ]] && "$candidate" -c 'import numpy, onnx' > /dev/null 2>&1; then python=$candidate; fi
done
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"; [[ -z $plan ]] || rm -f "$plan.partial"' EXIT
if [[ -z $facts ]]; then
    [[ -n $python ]] || fail "no Python here has onnx, which reads $onnx; run_all.sh makes one in .venv, or give --facts"
    facts=$temporary/facts.json
    "$python" graphs/facts.py "$onnx" > "$facts" || exit 1
fi
python=${python:-${TRT_PYTHON:-python3}}
said=$("$python" graphs/facts.py "$facts" input batch layout height width patched precision input_shape) || exit 1
{ read -r input; read -r batch; read -r layout; read -r height; read -r width; read -r patched; read -r precision
  read -r input_shape; } <<< "$said"
channels=3  # of a graph that leaves them open, too
pattern='^\[[^,]*, ([0-9]+),'; [[ $layout != NHWC ]] || pattern=' ([0-9]+)\]$'
[[ ! $input_shape =~ $pattern ]] || channels=${BASH_REMATCH[1]}
[[ $patched == '{}' || -n $plugins ]] || fail "$onnx: holds plugin nodes; add --plugins"
graph_fp16=no  # what is not INT8 in a patched INT8 graph is FP16
[[ $precision != fp16 && ! ($precision == int8 && $patched != '{}') ]] || graph_fp16=yes
name=$model
[[ $fp16 == no || $graph_fp16 == yes || $precision == int8 ]] || name=${model}_fp16
plan=${plan:-TensorRT/TRT_Engine/$name.plan}
[[ $plan == *.plan ]] || fail "--output $plan: must end in .plan"
if [[ -n $sizes ]]; then
    [[ -z $size$min_size$opt_size$max_size ]] || fail "--sizes says the sizes; leave --size, --min-size, --opt-size and --max-size out"
    for value in $sizes; do
        h=${value%x*} w=${value#*x}
        if [[ -z $opt_size ]]; then opt_size=$value; low_h=$h high_h=$h low_w=$w high_w=$w; fi
        low_h=$((h < low_h ? h : low_h)) high_h=$((h > high_h ? h : high_h))
        low_w=$((w < low_w ? w : low_w)) high_w=$((w > high_w ? w : high_w))
    done
    min_size=${low_h}x$low_w max_size=${high_h}x$high_w
elif [[ -n $size ]]; then
    [[ -z $min_size$opt_size$max_size ]] || fail "--size is one size; leave --min-size, --opt-size and --max-size out"
    min_size=$size opt_size=$size max_size=$size
elif [[ -n $min_size$opt_size$max_size ]]; then
    [[ -n $min_size && -n $max_size ]] || fail "a range of sizes has --min-size and --max-size"
    opt_size=${opt_size:-$max_size}
fi
if [[ -n $height && -n $width ]]; then
    for value in $min_size $max_size; do
        [[ $value == "${height}x$width" ]] || fail "${sizes:+--sizes }${sizes:---size $value}: the images of $onnx are ${height}x$width"
    done
    min_size=${height}x$width opt_size=$min_size max_size=$min_size
fi
[[ -n $min_size ]] || fail "$onnx: leaves the images' height and width open; give --size, or --sizes HxW,HxW"
for axis in height width; do
    case $axis in height) low=${min_size%x*} usual=${opt_size%x*} high=${max_size%x*} fixed=$height ;;
                  width) low=${min_size#*x} usual=${opt_size#*x} high=${max_size#*x} fixed=$width ;; esac
    ((low <= usual && usual <= high)) || fail "--min-size $min_size, --opt-size $opt_size, --max-size $max_size are not in this order"
    [[ -z $fixed || ($low == "$fixed" && $high == "$fixed") ]] || fail "--size $max_size: the $axis of the images of $onnx is $fixed"
done
shape_of() {  # HxW -> 3xHxW, or HxWx3
    if [[ $layout == NHWC ]]; then echo "$1x$channels"; else echo "${channels}x$1"; fi
}

flags=(--onnx="$onnx")
if [[ -z $batch || -z $height || -z $width ]]; then  # where all is fixed there is no profile
    flags+=(--minShapes="$input:${batch:-$min}x$(shape_of "$min_size")" --optShapes="$input:${batch:-$opt}x$(shape_of "$opt_size")"
            --maxShapes="$input:${batch:-$max}x$(shape_of "$max_size")")
fi
[[ -z $plugins ]] || flags+=(--staticPlugins="$plugins")
[[ $carry == no ]] || flags+=(--setPluginsToSerialize="$plugins")
defaults=(--memPoolSize=workspace:4096 --profilingVerbosity=detailed --exportLayerInfo="${plan%.plan}.layers.json")
# Between plugin nodes TensorRT runs what it can side by side, which needs memory side by side. Without, it does not.
[[ -z $plugins ]] || defaults+=(--maxAuxStreams=0)
for default in "${defaults[@]}"; do
    [[ " ${passed[*]-} " == *" ${default%%=*}="* ]] || flags+=("$default")  # trtexec refuses a flag given twice
done

if [[ ${#backend[@]} == 0 && -z ${TRT_BACKEND:-} ]] && command -v trtexec > /dev/null; then
    # Its --help begins with "... [TensorRT v8600]"; 10.0 is 100000. From 10 on the graph's types are binding.
    [[ $(trtexec --help) =~ \[TensorRT\ v([0-9]+)\] ]] || fail "$(command -v trtexec): does not say its version"
    version=${BASH_REMATCH[1]}
    if ((version >= 100000)); then
        [[ $fp16 == no || $precision != fp32 ]] ||
            fail "$onnx: --fp16 makes no FP16 of it from TensorRT 10 on; make it so: python onnx/graphsurgeon/to_fp16.py --onnx $onnx"
        flags+=(--stronglyTyped)
    elif [[ $fp16 == yes || $graph_fp16 == yes ]]; then flags+=(--fp16); fi
    if ((version >= 8600 && version < 9000)) && [[ " ${passed[*]-} " != *" --preview="* ]]; then
        flags+=(--preview=+profileSharing0806)  # several contexts at once: engine_builder.py says more
    fi
    command=(trtexec --skipInference --saveEngine="$plan.partial" "${flags[@]}" ${passed[@]+"${passed[@]}"})
else
    [[ $fp16 == no && $graph_fp16 == no ]] || flags+=(--fp16)
    [[ $facts == "$temporary"/* && $dry_run == yes ]] || flags+=(--facts="$facts")
    [[ $dry_run == yes ]] || command -v "${TRT_PYTHON:-python3}" > /dev/null ||
        fail "TRT_PYTHON=${TRT_PYTHON:-python3}: no such program; set it to the Python that imports TensorRT or TensorRT-RTX"
    command=("${TRT_PYTHON:-python3}" TensorRT/build_engine.py ${backend[@]+"${backend[@]}"} --saveEngine="$plan" "${flags[@]}" ${passed[@]+"${passed[@]}"})
fi

if [[ $dry_run == yes ]]; then
    printf '%q ' "${command[@]}"; echo
elif [[ ${command[0]} == trtexec ]]; then
    mkdir -p "$(dirname "$plan")"
    "${command[@]}" 2>&1 | tee "${plan%.plan}.log" || fail "$onnx: trtexec failed; its messages are in ${plan%.plan}.log"
    mv "$plan.partial" "$plan"
    ((version >= 10000)) || version=$((version / 1000)).$((version / 100 % 10)).$((version % 100))
    made=(); [[ $fp16 == no || $precision != fp32 ]] || made=(--precision fp16)
    [[ -n $batch ]] || made+=(--batches "$min" "$max")
    "$python" graphs/facts.py "$plan" --built-from "$facts" --graph "$onnx" --tool "tensorrt=$version" ${made[@]+"${made[@]}"}
    echo "wrote $plan"
else
    "${command[@]}"
fi
