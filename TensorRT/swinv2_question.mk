# Part of the Makefile: what the study of V2 in FP16 is made of (swinv2_question.sh says what its engines are).
#
# All lies in one folder: the study calls make with ONNX and DATA set to it, CFG to the yaml, and these:
#   EVERY, MATCH  which tensors are marked    RUN_BATCHES   that the engines run, e.g. 1,16
#   MARKED_FLAGS  to build.sh for engines with marked tensors, instead of BUILD_FLAGS
STUDY := .cache/swinv2_question
STUDIED := trained overflow underflow saturated
RUN_BATCHES ?= 1,16
stress_overflow := $(if $(filter swinv2,$(TYPE)),--qk 1e4) --norm-input 1e4
stress_underflow := --qk 1e-3
stress_saturated := --saturate

$(STUDIED:%=$(STUDY)/$(NAME)_%.safetensors): $(STUDY)/$(NAME)_%.safetensors: $(exporting) always
	$(call once,weights$(call what,_$*),,,'$(WEIGHTS)') python3 models/stress.py $(MODEL) $(stress_$*) --output $@

stressed = $(if $(filter-out trained,$(1)),$(STUDY)/$(NAME)_$(1).safetensors)
study_export = python3 onnx/export_onnx.py $(if $(call stressed,$*),--cfg $(CFG) --resume $(call stressed,$*),$(MODEL)) --output $@
$(STUDIED:%=$(STUDY)/$(NAME)_%.onnx): $(STUDY)/$(NAME)_%.onnx: $$(call stressed,$$*) $(exporting) always
	$(call once,export$(call what,_$*),,,'$(WEIGHTS)') $(study_export)
$(STUDIED:%=$(STUDY)/$(NAME)_%_opset12.onnx): $(STUDY)/$(NAME)_%_opset12.onnx: $$(call stressed,$$*) $(exporting) always
	$(call once,export$(call what,_$*) opset 12,,,'$(WEIGHTS)') $(study_export) --opset 12

# Of an engine, by its name: the graph that it is built from, that graph in FP32, and the images.
graph_of = $(STUDY)/$(patsubst %_fp32,%,$(patsubst %_opset17_fp16,%,$(patsubst %_opset12_fp16,%_opset12,$(1))))
fp32_of = $(patsubst %_fp16,%,$(call graph_of,$(1)))
images_of = $(foreach weights,$(STUDIED),$(if $(filter $(NAME)_$(weights)%,$(1)),$(STUDY)/$(NAME)_$(weights)-b16.npz))
running := $(filter-out TensorRT/build_% TensorRT/engine_builder.py TensorRT/swinv2_table.py,$(wildcard TensorRT/*.py))
study_flags = $(if $(filter %_fp32,$(1)),--noTF32,$(if $(filter %_opset12_fp16 %_opset17_fp16,$(1)),--fp16))

$(STUDY)/%_layers.onnx $(STUDY)/%_layers.npz: $(STUDY)/%.onnx $$(call images_of,$$*) $(running) always
	$(call once,marking$(call what,$*),$(STUDY)/$*_layers.onnx $(STUDY)/$*_layers.npz) \
	    python3 TensorRT/compare_layers.py prepare --onnx $< --input $(call images_of,$*) --every $(EVERY) --match '$(MATCH)' \
	    --output $(STUDY)
$(STUDY)/%_layers.plan: BUILD_FLAGS = $(MARKED_FLAGS)
$(STUDY)/%_layers.plan: $$(call graph_of,$$*)_layers.onnx $$(call library,$$*) $(builder) always
	$(build) $(call study_flags,$*)
$(STUDY)/%.plan: $$(call graph_of,$$*).onnx $$(call library,$$*) $(builder) always
	$(build) $(call study_flags,$*)

$(STUDY)/%-b$(RUN_BATCHES).npy: $(STUDY)/%.plan $$(call images_of,$$*) $(running) always
	$(call once,run$(call what,$*),,$(machine)) $(TRT_PYTHON) TensorRT/run_engine.py --plan $< --input $(call images_of,$*) \
	    --batch $(RUN_BATCHES) --output $@
$(STUDY)/layers_%_emulated.csv: $$(call fp32_of,$$*).onnx $$(call images_of,$$*) $(running) $(surgery) always
	$(call once,emulation$(call what,$*)) python3 TensorRT/emulate_fp16.py --onnx $< --input $(call images_of,$*) \
	    --every $(EVERY) --output $@
$(STUDY)/layers_%.csv: $(STUDY)/%_layers.plan $$(call graph_of,$$*)_layers.npz $(running) always
	$(call once,tensors$(call what,$*),,$(machine)) $(TRT_PYTHON) TensorRT/compare_layers.py run --plan $< \
	    --reference $(call graph_of,$*)_layers.npz --output $@
