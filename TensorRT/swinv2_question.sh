#!/usr/bin/env bash
# Why does SwinV2 give NaN or wrong logits under TensorRT in FP16, and does the patched graph not? SWINV2.md tells.
#
#   bash TensorRT/swinv2_question.sh --cfg models/swinv2_micro.yaml               engines, on a GPU
#   bash TensorRT/swinv2_question.sh --cfg models/swinv2_micro.yaml --emulate     the same question asked of a CPU
#
# Makes stressed weights (models/stress.py), graphs, engines and engines with marked tensors, runs them, and writes
# Results/swinv2_question.csv and Results/swinv2_question_<model>.png. What was made before by the same command from the
# same files and scripts is not made again. All else lies in .cache/swinv2_question/, its logs in logs/ there. Two calls
# for two models may run at once, each on its own GPU (CUDA_VISIBLE_DEVICES).
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
--builderOptimizationLevel=1 unless BUILD_FLAGS says another
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
largest=$(printf '%s\n' ${batches//,/ } | sort -n | tail -n 1)
((largest <= images)) || fail "--batches $batches: there are $images images"
TRT_PYTHON=${TRT_PYTHON:-python3}
read -ra build_flags <<< "${BUILD_FLAGS:-}"
layers_flags=("${build_flags[@]}")  # marked tensors change what is fused anyhow, and there are hundreds of kernels to time
[[ " ${build_flags[*]} " == *" --builderOptimizationLevel="* ]] || layers_flags+=(--builderOptimizationLevel=1)

facts=$(python3 models/facts.py --cfg "$cfg" ${resume:+--resume "$resume"})
read -r name type size checkpoint <<< "$facts"
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

work=.cache/swinv2_question plugins=TensorRT/Plugins/build/libswin_plugins.so
version='' gpus=''  # that engines are for
if [[ $emulate == no && $dry_run == no ]]; then  # said now, not after minutes of making graphs
    missing=()
    nvidia-smi > /dev/null 2>&1 || missing+=("a GPU that nvidia-smi knows")
    version=$("$TRT_PYTHON" -c 'import tensorrt; print(tensorrt.__version__)' 2> /dev/null) ||
        missing+=("tensorrt in $TRT_PYTHON (set TRT_PYTHON)")
    ! has "$engines" attention_fp16 || [[ -f $plugins ]] || missing+=("$plugins (make -C TensorRT/Plugins)")
    ((${#missing[@]} == 0)) || fail "engines need what is missing here: $(printf '%s; ' "${missing[@]}")--emulate" \
        "asks a CPU"
    gpus=$(nvidia-smi -L)
fi
failed=$work/failed_$name
if [[ $dry_run == no ]]; then
    mkdir -p $work/logs $work/stamps
    rm -f "$failed"
    # Files have the model's name: what is there of another checkpoint would be taken for this one's.
    hash=$(sha256sum < "$checkpoint")
    if [[ -e $work/stamps/$name && $(< "$work/stamps/$name") != "$hash" ]]; then
        rm -f "$work/$name"_{trained,overflow,underflow,saturated}* "$work/layers_$name"_{trained,overflow,underflow,saturated}*
    fi
    echo "$hash" > "$work/stamps/$name"
fi

# --- steps ---------------------------------------------------------------------------------------------------

# A pipe with --jobs lines in it: a command takes one out while it runs.
places=$(mktemp -u)
mkfifo "$places"
exec 8<> "$places"
rm "$places"
for ((i = 0; i < jobs; i++)); do echo >&8; done

# make_file FILE FROM... -- COMMAND...: run the command, unless it has made FILE before and the FROM still hold the same.
# The scripts that make FILE are among the FROM: what older surgery made is made again.
# A failure is noted, and the steps that do not need FILE go on: that an engine cannot be built is an answer too.
make_file() {
    local file=$1 from=() input machine begun log key stamp
    shift
    while [[ $1 != -- ]]; do from+=("$1"); shift; done
    shift
    if [[ $dry_run == yes ]]; then printf '%q ' "$@"; echo; return; fi
    for input in "${from[@]}"; do
        if [[ ! -e $input ]]; then
            echo "  left   $file: there is no $input"
            rm -f "$file"
            return
        fi
    done
    case $file in *.plan | *.npy | *.csv) machine="$version $gpus" ;; *) machine='' ;; esac
    key=$({ printf '%s\n' "$machine" "$@"; sha256sum "${from[@]}"; } | sha256sum | cut -c1-64)
    stamp=$work/stamps/$(basename "$file")
    if [[ -e $file && -e $stamp && $(< "$stamp") == "$key" ]]; then echo "  kept   $file"; return; fi
    rm -f "$stamp"
    log=$work/logs/$(basename "$file").log
    read -r -u 8
    begun=$SECONDS
    if "$@" > "$log" 2>&1 8>&-; then
        echo "  made   $file in $((SECONDS - begun)) s"
        echo "$key" > "$stamp"
    else
        echo "  FAILED $file: $(tail -n 1 "$log")"
        rm -f "$file"
        echo "$file" >> "$failed"
    fi
    echo >&8
}

end_jobs() {
    local groups
    groups=$(jobs -p | sed 's/^/-/')
    [[ -n $groups ]] || return 0
    kill -TERM -- $groups 2> /dev/null || true
    sleep 0.5  # build.sh removes what is half written
    kill -KILL -- $groups 2> /dev/null || true  # the other signal is lost on a process that is just being forked
}

beside() {  # COMMAND...: in the background, until `wait`
    if [[ $dry_run == yes ]]; then "$@"; else "$@" & fi
}

graph_py=(config.py utils.py data/{batches,images,photo_crops}.py models/*.{py,yaml} graphs/*.py onnx/*.py onnx/graphsurgeon/*.py)
# Of the slow steps, what their outcome hangs on, without utils.py, which changes for other reasons.
builder=(TensorRT/build.sh TensorRT/{build_engine,engine_builder,trt_runtime}.py)
runner=(TensorRT/{run_engine,engine,trt_runtime}.py)
comparer=(TensorRT/{compare_layers,engine,trt_runtime}.py)

graph_of() {  # engine -> what follows the model's name in its graph's
    case $1 in
        fp32 | opset17_fp16) echo '' ;;
        opset12_fp16) echo _opset12 ;;
        *) echo "_$1" ;;
    esac
}

flags_of() {
    case $1 in
        fp32) echo --noTF32 ;;
        attention_fp16) echo --fp16 --plugins=$plugins ;;
        *) echo --fp16 ;;
    esac
}

library_of() {  # engine -> the library that it is built with, where there is one
    [[ $1 != attention_fp16 || ! -f $plugins ]] || echo $plugins
}

# --- what the model and the stress are -----------------------------------------------------------------------

make_graphs() {  # weights
    local g=$work/${name}_$1 source=$checkpoint stress=()
    case $type,$1 in
        *,trained) ;;
        swinv2,overflow) stress=(--qk 1e4 --norm-input 1e4) ;;
        swinv1,overflow) stress=(--norm-input 1e4) ;;
        swinv2,underflow) stress=(--qk 1e-3) ;;
        swinv2,saturated) stress=(--saturate) ;;
    esac
    if ((${#stress[@]})); then
        make_file "$g.safetensors" "$checkpoint" "${graph_py[@]}" -- \
            python3 models/stress.py --cfg "$cfg" --resume "$checkpoint" "${stress[@]}" --output "$g.safetensors"
        source=$g.safetensors
    fi
    beside make_file "$g.onnx" "$source" "${graph_py[@]}" -- \
        python3 onnx/export_onnx.py --cfg "$cfg" --resume "$source" --output "$g.onnx"
    ! has "$engines" opset12_fp16 || beside make_file "${g}_opset12.onnx" "$source" "${graph_py[@]}" -- \
        python3 onnx/export_onnx.py --cfg "$cfg" --resume "$source" --opset 12 --output "${g}_opset12.onnx"
    wait
    beside make_file "$g-b$images.npz" "$g.onnx" utils.py data/*.py graphs/{compare,files,sessions}.py -- \
        python3 data/batch_data_gen.py --model "$g.onnx" --batches $images --output $work
    if [[ $emulate == yes ]]; then
        ! has "$engines" attention_fp16 || beside make_file "${g}_attention.onnx" "$g.onnx" "${graph_py[@]}" -- \
            python3 onnx/graphsurgeon/add_all.py --onnx "$g.onnx" --output "${g}_attention.onnx"
    else
        ! has "$engines" fp16 || beside make_file "${g}_fp16.onnx" "$g.onnx" "${graph_py[@]}" -- \
            python3 onnx/graphsurgeon/to_fp16.py --onnx "$g.onnx" --output "${g}_fp16.onnx"
        ! has "$engines" attention_fp16 || beside make_file "${g}_attention_fp16.onnx" "$g.onnx" "${graph_py[@]}" -- \
            python3 onnx/graphsurgeon/add_all.py --onnx "$g.onnx" --fp16 --output "${g}_attention_fp16.onnx"
    fi
    wait
}

emulate_engines() {  # weights
    local g=$work/${name}_$1 engine graph table
    for engine in opset12_fp16 opset17_fp16 attention_fp16; do
        has "$engines" $engine || continue
        graph=$g$(graph_of $engine)
        graph=${graph%_fp16}.onnx
        table=$work/layers_${name}_$1_${engine}_emulated.csv
        beside make_file "$table" "$graph" "$g-b$images.npz" TensorRT/{emulate_fp16,compare_layers}.py \
            graphs/reference.py -- python3 TensorRT/emulate_fp16.py --onnx "$graph" \
            --data "$g-b$images.npz" --every "$every" --output "$table"
    done
    wait
}

build_layers_engine() {  # weights, engine
    local g=$work/${name}_$1 graph flags
    graph=$g$(graph_of "$2") flags=$(flags_of "$2")
    make_file "${graph}_layers.npz" "$graph.onnx" "$g-b$images.npz" "${comparer[@]}" graphs/reference.py -- \
        python3 TensorRT/compare_layers.py prepare --onnx "$graph.onnx" --data "$g-b$images.npz" \
        --every "$every" --match "$match" --output $work
    # shellcheck disable=SC2046,SC2086  # words
    make_file "${g}_$2_layers.plan" "$graph.onnx" "${graph}_layers.npz" "${builder[@]}" $(library_of "$2") -- \
        bash TensorRT/build.sh "${graph}_layers.onnx" $flags --size "$size" --max 1 \
        --output "${g}_$2_layers.plan" "${layers_flags[@]}"
}

build_engines() {  # weights
    local g=$work/${name}_$1 engine graph flags
    for engine in ${engines//,/ }; do
        graph=$g$(graph_of "$engine") flags=$(flags_of "$engine")
        # shellcheck disable=SC2046,SC2086
        beside make_file "${g}_$engine.plan" "$graph.onnx" "${builder[@]}" $(library_of "$engine") -- \
            bash TensorRT/build.sh "$graph.onnx" $flags --size "$size" --max "$largest" \
            --output "${g}_$engine.plan" "${build_flags[@]}"
        ! has "$layers" "$engine" || beside build_layers_engine "$1" "$engine"
    done
    wait
}

run_engines() {  # weights
    local g=$work/${name}_$1 engine output table
    for engine in ${engines//,/ }; do
        output=${g}_$engine-b$batches.npy
        if [[ $dry_run == no ]]; then  # of an earlier call: the table would take them too
            find $work -maxdepth 1 -name "$(basename "$g")_$engine-b*.npy" ! -path "$output" -delete
        fi
        beside make_file "$output" "${g}_$engine.plan" "$g-b$images.npz" "${runner[@]}" -- \
            "$TRT_PYTHON" TensorRT/run_engine.py --plan "${g}_$engine.plan" \
            --input "$g-b$images.npz" --batch "$batches" --output "$output"
        has "$layers" "$engine" || continue
        table=$work/layers_${name}_$1_$engine.csv
        beside make_file "$table" "${g}_${engine}_layers.plan" "${comparer[@]}" -- \
            "$TRT_PYTHON" TensorRT/compare_layers.py run --plan "${g}_${engine}_layers.plan" \
            --reference "$g$(graph_of "$engine")_layers.npz" --output "$table"
    done
    wait
}

# --- all of it -----------------------------------------------------------------------------------------------

ask() {  # weights
    make_graphs "$1"
    if [[ $emulate == yes ]]; then
        emulate_engines "$1"
    else
        build_engines "$1"
        run_engines "$1"
    fi
}

ending='' order=$fp16_engines
if [[ $emulate == yes ]]; then ending=_emulated order=opset12_fp16,opset17_fp16,attention_fp16; fi
echo "$name, weights: ${weights//,/, }; up to $jobs steps at a time"
trap end_jobs EXIT
[[ $dry_run == yes ]] || set -m  # each is a process group, which the trap can end with all that it has started
for weight in ${weights//,/ }; do beside ask "$weight"; done
set +m
wait
[[ $dry_run == no ]] || exit 0

python3 TensorRT/swinv2_table.py --model "$name" ${version:+--tensorrt "$version"}
panels=()
for weight in ${all_weights//,/ }; do  # those of earlier calls too
    tables=()
    for engine in ${order//,/ }; do
        table=$work/layers_${name}_${weight}_$engine$ending.csv
        [[ ! -f $table ]] || tables+=("$table")
    done
    ((${#tables[@]} == 0)) || panels+=(--panel "$name, weights: $weight" "${tables[@]}")
done
((${#panels[@]} == 0)) || python3 TensorRT/compare_layers.py plot "${panels[@]}" --tolerance 0.1 \
    --output "Results/swinv2_question_$name$ending.png"
[[ ! -f $failed ]] || fail "could not be made: $(paste -sd ' ' "$failed"); their logs are in $work/logs/"
