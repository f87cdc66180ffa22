# The pipeline: which file is made from which, by which command, and when it is out of date. Written here, nowhere else.
#
#   make                                                   graphs and data of the micro Swin V1, which has its weights
#   make MODEL="--cfg models/swinv2.yaml --resume FILE" engines           of another model
#   make MODEL="--type swinv2 --resume FILE" onnx/swinv2_attention.onnx   one file, and what it is made from
#   make GRAPH=onnx/mine.onnx engines                      of one's own graph
#   make -n ...                                            prints the commands
#
#                                       +--> NAME_layernorm.onnx --+
#   checkpoint --> NAME.onnx -----------+--> NAME_attention.onnx --+--> NAME..._fp16.onnx --> NAME..._fp16.plan
#                   |    |              +--------------------------+
#                   |    +--> data/NAME-b1.npz ...      what errors are measured with
#                   +--> NAME_int8.onnx (Q/DQ pairs) --> NAME_attention_int8.onnx --> NAME_attention_int8.plan
#
# A file is out of date when its command, a file that the command reads, or the file itself is not what it was when it
# was made, in contents, not in time: once.py before each command sees to that. So every rule is tried every time
# (always), and a `touch` or a `git checkout` makes nothing anew. `make -j N` makes N files at the same time.
#
# Settings, as VAR=value to make or in the environment:
#   MODEL         the model and its weights, as every script takes them, quoted for a shell
#   GRAPH         instead: an FP32 graph that is there
#   ONNX, DATA, PLANS  the folders; default onnx, data, TensorRT/TRT_Engine
#   BATCHES       of the data; default "1 4 8 16"
#   IMAGES        a folder of images, instead of crops of the packaged photographs
#   INT8_FLAGS    to TensorRT/INT8/quant.py; INT8_BATCHES: of 16 images, that it calibrates on
#   FACTS         what models/facts.py says of MODEL: a caller that has asked, which takes two seconds, passes it on
#   TRT_PYTHON    has TensorRT 8.6, 10, 11 or TensorRT-RTX; default python3.  TRT_BACKEND  which, where it has two
#   BUILD_FLAGS   to TensorRT/build.sh
#   TAKE_FILES    set to anything: files that are there are taken as they are, whatever made them

MODEL ?= --cfg models/swin_micro.yaml
ONNX ?= onnx
DATA ?= data
PLANS ?= TensorRT/TRT_Engine
BATCHES ?= 1 4 8 16
TRT_PYTHON ?= python3
export TRT_PYTHON

ifdef GRAPH
FACTS := $(basename $(notdir $(GRAPH)))
ONNX := $(patsubst %/,%,$(dir $(GRAPH)))
else ifndef FACTS
FACTS := $(shell python3 models/facts.py $(MODEL))
$(if $(FACTS),,$(error MODEL: no model, for the reason above))
endif
NAME := $(word 1,$(FACTS))
TYPE := $(word 2,$(FACTS))
WEIGHTS := $(wordlist 4,$(words $(FACTS)),$(FACTS))

all: graphs data
graphs: $(patsubst %,$(ONNX)/$(NAME)%.onnx,_fp16 _layernorm_fp16 _attention_fp16 _attention_int8)
data: $(DATA)/$(NAME)-b$(firstword $(BATCHES)).npz $(DATA)/$(NAME)_int8-b$(firstword $(BATCHES)).npz

# --- how a command is run ------------------------------------------------------------------------------------

# $(call once,WHAT[,OUTPUTS[,ALSO[,FROM]]]): before a command, as once.py's flags of these names. With -n only the command
# is shown.
dry_run := $(findstring n,$(firstword -$(MAKEFLAGS)))
once = $(if $(dry_run),,@python3 once.py --what '$(1)' --output $(or $(2),$@) --from $(filter-out always,$^) $(4) \
    $(if $(3),--also '$(3)') -- )
# $(call what,NAME_attention_fp16): " attention fp16", what follows the model in a name.
what = $(subst _, ,$(patsubst $(NAME)%,%,$(1)))
images = $(if $(IMAGES),--images $(IMAGES))
comma := ,
space := $() $()

always: ;
.PHONY: all graphs data engines always
.SECONDARY:
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

# The Python that a file hangs on. Also what only says something better makes anew: nobody has to think of it.
shared := requirements.txt config.py utils.py $(wildcard graphs/*.py data/*.py)
exporting := $(shared) $(wildcard models/*.py)
surgery := $(shared) $(wildcard onnx/graphsurgeon/*.py)
quantising := $(surgery) $(wildcard TensorRT/INT8/*.py)

# --- graphs --------------------------------------------------------------------------------------------------

ifndef GRAPH
$(ONNX)/$(NAME).onnx: $(exporting) always
	$(call once,export,,,'$(WEIGHTS)') python3 onnx/export_onnx.py $(MODEL) --output $@

# timm's own model, which fixes the batch: TensorRT on it is one of those that race.py compares with.
$(ONNX)/$(NAME)_timm_b%.onnx: $(exporting) always
	$(call once,timm batch $*,,,'$(WEIGHTS)') python3 onnx/export_timm.py $(MODEL) --batch $* --output $@
endif

$(ONNX)/%_layernorm.onnx: $(ONNX)/%.onnx $(surgery) always
	$(call once,LayerNorm plugin) python3 onnx/graphsurgeon/add_every_layernorm.py --onnx $< --output $@

$(ONNX)/%_attention.onnx: $(ONNX)/%.onnx $(surgery) always
	$(call once,all plugins) python3 onnx/graphsurgeon/add_all.py --onnx $< --output $@

# What stays FP32 has the classifier as a plugin too: TensorRT-RTX multiplies FP32 in TF32.
$(ONNX)/%_attention_fp32.onnx: $(ONNX)/%.onnx $(surgery) always
	$(call once,all plugins and the classifier) python3 onnx/graphsurgeon/add_all.py --onnx $< --classifier --output $@

$(ONNX)/%_fp16.onnx: $(ONNX)/%.onnx $(surgery) always
	$(call once,FP16$(call what,$*)) python3 onnx/graphsurgeon/to_fp16.py --onnx $< --output $@

# By itself quant.py leaves narrow blocks in FP16. The micro models have hardly others, and show every INT8 node.
INT8_FLAGS ?= $(if $(filter %_micro,$(NAME)),--narrow) $(INT8_BATCHES:%=--calibration-batches %)
cache := TensorRT/INT8/$(NAME).cache
$(ONNX)/$(NAME)_int8.onnx: $(ONNX)/$(NAME).onnx $(quantising) always
	$(call once,INT8,$@ $(cache)) python3 TensorRT/INT8/quant.py --onnx $< --recalibrate $(INT8_FLAGS) $(images) \
	    --cache $(cache) --output $@

$(ONNX)/$(NAME)_attention_int8.onnx: $(ONNX)/$(NAME)_int8.onnx $(surgery) always
	$(call once,INT8 attention) python3 onnx/graphsurgeon/add_int8.py --onnx $< --output $@

# --- data: images, and the logits that a graph gives of them -------------------------------------------------

data_of = $(foreach batch,$(BATCHES),$(DATA)/$(1)-b$(batch).npz)
$(call data_of,%): $(ONNX)/%.onnx $(shared) always
	$(call once,data$(call what,$*),$(call data_of,$*)) python3 data/batch_data_gen.py --onnx $< $(images) \
	    --batch $(subst $(space),$(comma),$(BATCHES)) --output $(DATA)

# --- engines -------------------------------------------------------------------------------------------------

# An engine is for one kind of GPU and one version of TensorRT.
machine = $(eval machine := $$(shell { nvidia-smi -L; $(TRT_PYTHON) -c \
    'from TensorRT import backend as b; print(b.described(b.load()))'; } 2> /dev/null))$(machine)
builder := TensorRT/build.sh $(wildcard TensorRT/build_*.py TensorRT/engine_builder.py TensorRT/backend.py \
    TensorRT/trt_runtime.py graphs/facts.py)
LIBRARY := TensorRT/Plugins/build/libswin_plugins.so

layernorm := $(if $(filter swinv2,$(TYPE)),_layernorm,_layernorm_fp16)  # one model in FP32, the other in FP16
engines: $(patsubst %,$(PLANS)/$(NAME)%.plan,_fp16 $(layernorm) _attention_fp16 _attention_int8) $(PLANS)/$(NAME).plan

with_plugins := %_layernorm %_layernorm_fp16 %_attention %_attention_fp32 %_attention_fp16 %_attention_int8 \
    %_attention_fp16_layers
library = $(if $(filter $(with_plugins),$(1)),$(LIBRARY))
build = $(call once,engine$(call what,$(basename $(@F))),,$(machine)) bash TensorRT/build.sh $< $(BUILD_FLAGS) \
    $(patsubst %,--plugins=%,$(filter $(LIBRARY),$^)) --output $@

.SECONDEXPANSION:
$(PLANS)/%.plan: $(ONNX)/%.onnx $$(call library,$$*) $(builder) always
	$(build) $(if $(filter %_fp16 %_int8,$*),,--noTF32)
# timm's graph is FP32: TensorRT 8.6 makes FP16 of it.
$(PLANS)/$(NAME)_timm_b%_fp16.plan: $(ONNX)/$(NAME)_timm_b%.onnx $(builder) always
	$(build) --fp16

# Its own Makefile builds what of it is out of date. One from elsewhere serves where nothing here can build one.
plugin_settings := $(ARCHS) $(CUDA_HOME) $(TENSORRT_ROOT) $(CUBLAS_ROOT) $(CUTLASS_ROOT)
plugin_sources := $(wildcard TensorRT/Plugins/Makefile TensorRT/Plugins/*/*.cu TensorRT/Plugins/*/*.cuh \
    TensorRT/Plugins/*/*.cpp TensorRT/Plugins/*/*.h)
make_plugins := env -u MAKEFLAGS make --no-print-directory -C TensorRT/Plugins
from_elsewhere = $(shell [ ! -f $(LIBRARY) ] || $(make_plugins) -s -n > /dev/null 2>&1 || echo yes)
$(LIBRARY): $(plugin_sources) always
	$(if $(from_elsewhere),@echo "  plugins: $@ is taken as it is",$(call once,plugins,,$(plugin_settings)) $(make_plugins))

include TensorRT/swinv2_question.mk
