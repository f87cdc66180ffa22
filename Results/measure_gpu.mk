# Everything that README shows of a GPU, measured in one run on a host with two GPUs of a kind.
#
#   make -f Results/measure_gpu.mk -j 12 V1=V1.safetensors V2=V2.safetensors
#
# One GPU is timed, one thing at a time; before, it trains V1 and builds the patched engines. The other trains V2,
# compiles, builds the other engines and runs the tests meanwhile; last, alone, what bears nothing beside it: device
# memory and the sanitizers. At the end the pictures are drawn and the figures put into README. A line says when a step
# begins, another when it fails; what it prints is in .cache/measure_gpu/RUN_ID/. A step that fails does not stop the
# others; which did stands at the end, and the exit status is then 2. The same command with RUN_ID=... goes on: what is
# done is not done again, what failed is tried again. A step alone: its name behind the command (`...
# race-plugins-fp16`). `-n` prints what would be run.
#
#   V1, V2      checkpoints of Small; a file that is not there is trained (models/train.py)
#   RUN_ID      the run; default date and time, shown first
#   TIMED, OTHER  the GPUs, by number; default 0 and 1. With OTHER=0 -j 1 one GPU does it all, one thing after the other
#   BATCHES     of the race; default 1,8,32,128
#   TIMM_BATCHES  of timm's export, an engine for each; default BATCHES
#   ORT_PATH    a folder with onnxruntime-gpu, where python3 has another onnxruntime
#   SANITIZER   compute-sanitizer; that of CUDA 13.0 fails at PyTorch's own products under racecheck, 2026.4 does not
#   TRT_PYTHON, BUILD_FLAGS, SWIN_KERNELS   as everywhere
#
# TensorRT/Plugins/build/libswin_plugins.so is built before (make -C TensorRT/Plugins). Graphs and engines that are there
# already are taken as they are: to measure a commit, begin in a fresh clone.
#
# On the timed GPU goes first what is ready first, and of what is ready what stands first here.

V1 ?= models/checkpoints/swinv1.safetensors
V2 ?= models/checkpoints/swinv2.safetensors
TIMED ?= 0
OTHER ?= 1
BATCHES ?= 1,8,32,128
ORT_PATH ?=
TRT_PYTHON ?= python3
BUILD_FLAGS ?=
SANITIZER ?= compute-sanitizer
comma := ,

ifndef RUN_ID
RUN_ID := $(shell date -u +%Y%m%d-%H%M%S)
endif
STATE := .cache/measure_gpu
RUN := $(STATE)/$(RUN_ID)
ifeq (,$(findstring n,$(firstword -$(MAKEFLAGS))))
$(shell mkdir -p $(RUN) && rm -f $(RUN)/failed)
$(info run $(RUN_ID))
endif
export RUN_ID TRT_PYTHON
export TORCHINDUCTOR_CACHE_DIR ?= $(abspath .cache/inductor)

PLANS := TensorRT/TRT_Engine
MODELS := 1 2
cfg1 := models/swin.yaml
cfg2 := models/swinv2.yaml
size1 := 224
size2 := 256
TIMM_BATCHES ?= $(BATCHES)
each = $(subst $(comma), ,$(1))

# $(call run,GPU,COMMAND): the recipe of a step. One that fails leaves no target and does not stop the others.
# $(call timed,COMMAND): on the timed GPU, alone there. Engines are built there too, several at a time: -s instead of -x.
run = @$(if $(3),exec 9> $(RUN)/timed.lock; flock $(3) 9;) echo "$$(date +%T) $(@F)"; \
    if (export CUDA_VISIBLE_DEVICES=$(1); $(2)) > $(RUN)/$(@F).log 2>&1 9>&-; then touch $@; \
    else rm -f $@; echo "$$(date +%T) $(@F) FAILED: $$(tail -n 1 $(RUN)/$(@F).log)" | tee -a $(RUN)/failed; fi
timed = $(call run,$(TIMED),$(1),-x)

all: report
	@! cat $(RUN)/failed 2> /dev/null
report: all-timed other
	python3 Results/draw_profile.py
	python3 Results/draw_latency.py
	python3 Results/report.py --write

# --- what is trained and made on the CPU -------------------------------------------------------------------------------

$(V1) $(V2):
	$(call run,$(if $(filter $(V1),$@),$(TIMED),$(OTHER)),python3 models/train.py \
	    --type $(if $(filter $(V1),$@),swinv1,swinv2) --lr 1e-3 --steps 400 --output $@)

define files_of_model
onnx/swinv$(1).onnx: $$(V$(1))
	$$(call run,,python3 onnx/export_onnx.py --cfg $$(cfg$(1)) --resume $$(V$(1)))
$$(STATE)/data$(1): onnx/swinv$(1).onnx
	$$(call run,,python3 data/batch_data_gen.py --model $$< --batches 1$$(comma)4$$(comma)8$$(comma)16$$(comma)32$$(comma)128)
onnx/swinv$(1)_attention_fp16.onnx: onnx/swinv$(1).onnx
	$$(call run,,python3 onnx/graphsurgeon/add_all.py --onnx $$< --fp16)
onnx/swinv$(1)_attention.onnx: onnx/swinv$(1).onnx
	$$(call run,,python3 onnx/graphsurgeon/add_all.py --onnx $$<)
onnx/swinv$(1)_fp16.onnx: onnx/swinv$(1).onnx
	$$(call run,,python3 onnx/graphsurgeon/to_fp16.py --onnx $$<)
onnx/swinv$(1)_layernorm.onnx: onnx/swinv$(1).onnx
	$$(call run,,python3 onnx/graphsurgeon/add_every_layernorm.py --onnx $$<)
onnx/swinv$(1)_layernorm_fp16.onnx: onnx/swinv$(1)_layernorm.onnx
	$$(call run,,python3 onnx/graphsurgeon/to_fp16.py --onnx $$<)
onnx/swinv$(1)_int8.onnx: onnx/swinv$(1).onnx
	$$(call run,,python3 TensorRT/INT8/quant.py --onnx $$< --batches 8 --provider cpu)
onnx/swinv$(1)_attention_int8.onnx: onnx/swinv$(1)_int8.onnx
	$$(call run,,python3 onnx/graphsurgeon/add_int8.py --onnx $$<)
$$(STATE)/data$(1)_int8: onnx/swinv$(1)_int8.onnx
	$$(call run,,python3 data/batch_data_gen.py --model $$< --batches 1$$(comma)8$$(comma)32$$(comma)128)
$$(patsubst %,onnx/swinv$(1)_timm_b%.onnx,$$(call each,$$(TIMM_BATCHES))): onnx/swinv$(1)_timm_b%.onnx: $$(V$(1))
	$$(call run,,env OMP_NUM_THREADS=4 python3 onnx/export_timm.py --cfg $$(cfg$(1)) --resume $$< --batch $$* --output $$@)
endef
$(foreach model,$(MODELS),$(eval $(call files_of_model,$(model))))

# --- engines: patched ones on the timed GPU, which waits for them; the others, which take minutes, on the other ----------

# $(call engine,NAME,GPU,FLAGS[,GRAPH])
define engine
ALL_PLANS += $(PLANS)/$(1).plan
$(PLANS)/$(1).plan: onnx/$(or $(4),$(1)).onnx
	$$(call run,$(2),bash TensorRT/build.sh $$< $(3) --output $$@ $$(BUILD_FLAGS),$(if $(filter $(TIMED),$(2)),-s))
endef
define engines_of_model
$$(eval $$(call engine,swinv$(1)_attention_fp16,$$(TIMED),--size $$(size$(1)) --fp16 --plugins))
$$(eval $$(call engine,swinv$(1)_attention_int8,$$(TIMED),--size $$(size$(1)) --fp16 --plugins))
$$(eval $$(call engine,swinv$(1)_attention,$$(OTHER),--size $$(size$(1)) --noTF32 --plugins))
$$(eval $$(call engine,swinv$(1)_fp16,$$(OTHER),--size $$(size$(1)) --fp16))
$$(eval $$(call engine,swinv$(1),$$(OTHER),--size $$(size$(1)) --noTF32))
$$(foreach batch,$$(call each,$$(TIMM_BATCHES)),$$(eval \
    $$(call engine,swinv$(1)_timm_b$$(batch)_fp16,$$(OTHER),--fixed --fp16,swinv$(1)_timm_b$$(batch))))
endef
$(foreach model,$(MODELS),$(eval $(call engines_of_model,$(model))))
$(eval $(call engine,swinv1_layernorm_fp16,$(OTHER),--size $(size1) --fp16 --plugins))
$(eval $(call engine,swinv2_layernorm,$(OTHER),--size $(size2) --noTF32 --plugins))

plans = $(foreach name,$(1),$(PLANS)/swinv$(name).plan)
TIMM := $(foreach model,$(MODELS),$(foreach batch,$(call each,$(TIMM_BATCHES)),$(model)_timm_b$(batch)_fp16))

# --- the timed GPU: one step at a time -----------------------------------------------------------------------------------

STEPS := race-plugins-fp16 race-plugins-int8 race-compile-fp16 race-timm-fp16 race-trt-fp16 race-autotune-fp16 profile profile-unpatched \
    kernels race-eager-fp16 race-script-fp16 race-ort-fp16 race-trt-fp32 race-compile-fp32 race-torch-fp32 race-ort-fp32 \
    race-autotune-fp32
race = python3 race.py --take-files --resume $(V1) $(V2) --run-id $(RUN_ID) --batch $(or $(3),$(BATCHES)) --runner $(1) \
    --precision $(2)
with_ort = env PYTHONPATH=$(ORT_PATH):$$PYTHONPATH

$(STEPS:%=$(RUN)/%): $(STATE)/data1 $(STATE)/data2
$(filter %-fp32,$(STEPS:%=$(RUN)/%)): | $(filter %-fp16,$(STEPS:%=$(RUN)/%))  # FP16 counts more
$(RUN)/race-plugins-fp16: $(call plans,1_attention_fp16 2_attention_fp16)
	$(call timed,$(call race,trt-plugins,fp16))
$(RUN)/race-plugins-int8: $(call plans,1_attention_int8 2_attention_int8) $(STATE)/data1_int8 $(STATE)/data2_int8
	$(call timed,$(call race,trt-plugins,int8))
$(RUN)/race-compile-fp16: $(RUN)/compiled-reduce-overhead-fp16
	$(call timed,$(call race,torch-compile,fp16) --mode reduce-overhead)
$(RUN)/race-timm-fp16: $(call plans,$(TIMM))
	$(call timed,$(call race,trt-timm,fp16,$(TIMM_BATCHES)))
$(RUN)/race-trt-fp16: $(call plans,1_fp16 2_fp16)
	$(call timed,$(call race,trt,fp16))
$(RUN)/race-eager-fp16:
	$(call timed,$(call race,torch-eager,fp16))
$(RUN)/kernels:
	$(call timed,python3 TensorRT/Plugins/benchmark.py --batch 32)
$(RUN)/profile: $(call plans,1_attention_fp16 2_attention_fp16 1_attention_int8 2_attention_int8)
$(RUN)/profile-unpatched: $(call plans,1_fp16 2_fp16)
$(RUN)/profile $(RUN)/profile-unpatched: | $(RUN)/kernels  # which measures the GPU's peaks
	$(call timed,$(TRT_PYTHON) TensorRT/profile_engine.py --plan $(filter %.plan,$^))
$(RUN)/race-autotune-fp16: $(RUN)/compiled-max-autotune-fp16
	$(call timed,$(call race,torch-compile,fp16) --mode max-autotune)
$(RUN)/race-script-fp16:
	$(call timed,$(call race,torch-script,fp16))
$(RUN)/race-ort-fp16:
	$(call timed,$(with_ort) $(call race,ort-cuda,fp16))
$(RUN)/race-trt-fp32: $(call plans,1 2 1_attention 2_attention)
	$(call timed,$(call race,trt-plugins$(comma)trt,fp32))
$(RUN)/race-compile-fp32: $(RUN)/compiled-reduce-overhead-fp32
	$(call timed,$(call race,torch-compile,fp32) --mode reduce-overhead)
$(RUN)/race-torch-fp32:
	$(call timed,$(call race,torch-eager$(comma)torch-script,fp32))
$(RUN)/race-ort-fp32:
	$(call timed,$(with_ort) $(call race,ort-cuda,fp32))
$(RUN)/race-autotune-fp32: $(RUN)/compiled-max-autotune-fp32
	$(call timed,$(call race,torch-compile,fp32) --mode max-autotune)

all-timed: $(STEPS:%=$(RUN)/%)

# --- the other GPU -------------------------------------------------------------------------------------------------------

# What torch.compile compiles is found by the timed process. Every batch and model in a process of its own, four at once.
COMPILED := $(foreach precision,fp16 fp32,$(foreach mode,reduce-overhead max-autotune,$(RUN)/compiled-$(mode)-$(precision)))
$(COMPILED): $(V1) $(V2)
	$(call run,$(OTHER),printf '%s\n' $(foreach batch,$(call each,$(BATCHES)),'$(cfg1) $(V1) $(batch)' '$(cfg2) $(V2) $(batch)') | \
	    xargs -P 4 -L 1 sh -c 'python3 Torch_Latency.py --runner torch-compile --compile-only \
	    --mode $(patsubst %-fp32,%,$(patsubst %-fp16,%,$(@F:compiled-%=%))) --precision $(lastword $(subst -, ,$(@F))) \
	    --cfg $$1 --resume $$2 --batch $$3' _)
$(RUN)/compiled-max-autotune-fp16: | $(RUN)/compiled-reduce-overhead-fp16
$(RUN)/compiled-reduce-overhead-fp32: | $(RUN)/compiled-max-autotune-fp16
# The last of them, which takes longest and counts least, comes after what must be alone on this GPU.
COMPILED_BEFORE := $(filter-out %max-autotune-fp32,$(COMPILED))
$(RUN)/compiled-max-autotune-fp32: | $(RUN)/racecheck

ACCURACY_BATCHES := 1$(comma)4$(comma)8$(comma)16$(comma)32$(comma)128
ENGINES1 := 1 1_fp16 1_layernorm_fp16 1_attention_fp16
ENGINES2 := 2 2_fp16 2_layernorm 2_attention_fp16
$(RUN)/accuracy1 $(RUN)/accuracy2: $(RUN)/accuracy%:
	$(call run,$(OTHER),python3 test_swinV2.py --cfg $(cfg$*) --resume $(V$*) --count 2000 \
	    --batch $(ACCURACY_BATCHES) --runner torch-fp32$(comma)torch-fp16$(comma)engine \
	    --plan $(call plans,$(ENGINES$*)))
$(RUN)/accuracy1: $(call plans,$(ENGINES1))
$(RUN)/accuracy2: $(call plans,$(ENGINES2))
$(RUN)/accuracy1_int8 $(RUN)/accuracy2_int8: $(RUN)/accuracy%_int8: $(PLANS)/swinv%_attention_int8.plan | $(RUN)/accuracy%
	$(call run,$(OTHER),python3 test_swinV2.py --cfg $(cfg$*) --resume $(V$*) --count 5000 --batch $(ACCURACY_BATCHES) \
	    --runner torch-fp32$(comma)engine --plan $<)
KERNEL_TESTS := python3 -m pytest -m gpu -q tests/test_kernels_gpu.py tests/test_int8_kernels_gpu.py
ENGINE_TESTS := $(TRT_PYTHON) -m pytest --noconftest -m gpu -rs -v tests/test_engines_gpu.py tests/test_int8_cache_gpu.py
$(RUN)/kernel-tests: | $(V1) $(V2)
	$(call run,$(OTHER),$(KERNEL_TESTS))
$(RUN)/question: | $(RUN)/kernel-tests $(ALL_PLANS)
	$(call run,$(OTHER),status=0; for cfg in models/swinv2_micro.yaml models/swin_micro.yaml; do \
	    bash TensorRT/swinv2_question.sh --cfg $$cfg || status=1; done; exit $$status)
$(RUN)/micro: | $(RUN)/question
	$(call run,$(OTHER),env VENV=none RUN_ID=$(RUN_ID)-micro bash run_all.sh)
$(RUN)/engine-tests: $(RUN)/micro $(RUN)/question
	$(call run,$(OTHER),$(ENGINE_TESTS) -k "not memory")
ALONE := memory memory-tests memcheck racecheck
$(RUN)/memory: $(ALL_PLANS) | $(RUN)/engine-tests $(RUN)/accuracy1_int8 $(RUN)/accuracy2_int8 $(COMPILED_BEFORE)
	$(call run,$(OTHER),$(TRT_PYTHON) TRT_test.py --memory \
	    --plan $(call plans,$(ENGINES1) $(ENGINES2) 1_attention_int8 2_attention_int8))
$(RUN)/memory-tests: | $(RUN)/memory
	$(call run,$(OTHER),$(ENGINE_TESTS) -k memory)
# A sanitizer holds on to memory as long as a process runs: each test has one of its own. PyTorch would keep memory for itself,
# where a sanitizer sees no border, and without that no CUDA graph can be captured.
sanitized = tests=$$($(KERNEL_TESTS) --collect-only -k "not 2_to_the_31 and not cuda_graph$(2)" | grep ::) && \
    echo "$$tests" | xargs -d '\n' -n 1 -P 3 \
    env PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $(1) --error-exitcode 1 --kernel-name kns=swin \
    python3 -m pytest -m gpu -q
$(RUN)/memcheck: | $(RUN)/memory-tests
	$(call run,$(OTHER),$(call sanitized,memcheck))
# racecheck looks at shared memory within one launch. Of hundreds of launches it takes many minutes, and of two streams it
# may lose track; the tests of these run no kernel that others do not.
$(RUN)/racecheck: | $(RUN)/memcheck
	$(call run,$(OTHER),$(call sanitized,racecheck, and not two_streams and not one_after_the_other))

other: $(ALONE:%=$(RUN)/%)

# Names alone, for the command line.
NAMES := $(STEPS) $(ALONE) $(COMPILED:$(RUN)/%=%) accuracy1 accuracy2 accuracy1_int8 accuracy2_int8 question \
    kernel-tests micro engine-tests
$(NAMES): %: $(RUN)/%
	@test -e $<

.PHONY: all report all-timed other $(NAMES)
