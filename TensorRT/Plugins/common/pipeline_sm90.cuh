// How the warps of a block on Hopper hand tiles to each other and share the tensor cores: rings of stages in shared
// memory (producer and consumer, as CUTLASS's PipelineTmaAsync and ThunderKittens have them), ordered turns, named
// barriers, and the split of registers.
//
//     producer, one warp                            consumers
//     pipeline.producer_acquire(at);                pipeline.consumer_wait(at);
//     if (elect_one()) {                            ... products of stage at.stage ...
//         pipeline.producer_expect(at, bytes);      wgmma_wait<0>();
//         tma_load(..., pipeline.barrier(at), ...); pipeline.consumer_release(at);
//     }                                             at.advance();
//     at.advance();
//
// Pipeline and OrderedTurns lie in shared memory; one thread initialises them, then fence_barrier_init() and
// __syncthreads(). PipelineState and Turn are each thread's own.
#pragma once

#include "ptx_sm90.cuh"

namespace swin {

// --- rings of stages -------------------------------------------------------------------------------------------------

// A place in a ring: which stage, and which parity the phase has that ends when it is filled.
// kRefilled: false where each stage is filled once and stays.
template <int kStages, bool kRefilled = true> struct PipelineState {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= kRefilled;
        }
    }
    __device__ __forceinline__ void advance(int steps) {
        for (int step = 0; step < steps; ++step) advance();
    }
};

// The barriers of a ring: of each stage, one that it is full and one that it is empty.
template <int kStages, bool kRefilled = true> struct Pipeline {
    using State = PipelineState<kStages, kRefilled>;
    static_assert(kStages >= 1);

    uint64_t full[kStages], empty[kStages];

    // How many arrivals fill a stage, and how many empty it.
    __device__ __forceinline__ void init(int producers, int consumers) {
        for (int i = 0; i < kStages; ++i) {
            mbarrier_init(&full[i], producers);
            mbarrier_init(&empty[i], consumers);
        }
    }

    // Waits until the stage is empty; the first time that it comes to a stage it does not wait.
    __device__ __forceinline__ void producer_acquire(const State& at) {
        mbarrier_wait(&empty[at.stage], at.parity ^ 1);
    }
    // One arrival, and `bytes` that copies will bring, which are given barrier(at).
    __device__ __forceinline__ void producer_expect(const State& at, int bytes) {
        mbarrier_arrive_expect_tx(&full[at.stage], bytes);
    }
    __device__ __forceinline__ uint64_t* barrier(const State& at) { return &full[at.stage]; }
    // One arrival of this thread, which has filled its part of the stage itself.
    __device__ __forceinline__ void producer_commit(const State& at) { mbarrier_arrive(&full[at.stage]); }

    __device__ __forceinline__ void consumer_wait(const State& at) { mbarrier_wait(&full[at.stage], at.parity); }
    // One arrival of each warp; all its lanes must be done with the stage, as they are after wgmma_wait.
    __device__ __forceinline__ void consumer_release(int stage) {
        if (kRefilled && threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);
    }
    __device__ __forceinline__ void consumer_release(const State& at) { consumer_release(at.stage); }
    // One arrival of each thread, for lanes that read the stage at their own pace.
    __device__ __forceinline__ void consumer_release_by_thread(const State& at) { mbarrier_arrive(&empty[at.stage]); }
};

// --- ordered turns ---------------------------------------------------------------------------------------------------

// kGroups groups of warps do something one after the other, the first group first, again and again: multiply, while the
// others do something else (CUTLASS: OrderedSequenceBarrier).
template <int kGroups> struct OrderedTurns {
    uint64_t barriers[kGroups];

    __device__ __forceinline__ void init(int warps_of_group) {
        for (int i = 0; i < kGroups; ++i) mbarrier_init(&barriers[i], warps_of_group);
    }
};

// Where a group stands. With one group it is always its turn.
template <int kGroups> struct Turn {
    OrderedTurns<kGroups>& turns;
    int group, parity;

    __device__ __forceinline__ Turn(OrderedTurns<kGroups>& turns_, int group_)
        : turns(turns_), group(group_), parity(group_ == 0) {}
    __device__ __forceinline__ void wait() {
        if constexpr (kGroups > 1) mbarrier_wait(&turns.barriers[group], parity);
        parity ^= 1;
    }
    // The next group's turn: this warp has its products under way.
    __device__ __forceinline__ void pass_on() const {
        if (kGroups > 1 && threadIdx.x % 32 == 0) mbarrier_arrive(&turns.barriers[(group + 1) % kGroups]);
    }
};

// --- named barriers --------------------------------------------------------------------------------------------------

// The barriers of bar.sync, of which a block has 16.
enum class NamedBarrier {
    kBlock = 0,  // __syncthreads()
    kWarpgroup0 = 1,  // a warpgroup that multiplies, and the two after it
    kWarpgroup1,
    kWarpgroup2,
    kConsumers,  // all that multiply
};

// For all threads of a warpgroup, and for the kThreads threads that multiply.
__device__ __forceinline__ void warpgroup_sync(int warpgroup) {
    named_barrier_sync<128>(static_cast<int>(NamedBarrier::kWarpgroup0) + warpgroup);
}
template <int kThreads> __device__ __forceinline__ void consumers_sync() {
    named_barrier_sync<kThreads>(static_cast<int>(NamedBarrier::kConsumers));
}

// --- registers -------------------------------------------------------------------------------------------------------

// How kConsumerWarpgroups warpgroups that multiply and one that copies share a multiprocessor's registers, as numbers
// of a thread. A quarter of a multiprocessor has 512 for each lane and runs a warp of each warpgroup. All begin with
// the same number, which __launch_bounds__(threads, 1) gives; the warpgroup that copies gives up as many as it can.
template <int kConsumerWarpgroups> struct RegisterSplit {
    static constexpr int kUnit = 8;  // of setmaxnreg
    static constexpr int kEnoughToCopy = 32;
    static constexpr int kAtLaunch = 512 / (kConsumerWarpgroups + 1) / kUnit * kUnit;
    static constexpr int kAll = kAtLaunch * (kConsumerWarpgroups + 1);
    static constexpr int kConsumer = (kAll - kEnoughToCopy) / kConsumerWarpgroups / kUnit * kUnit;
    static constexpr int kProducer = kAll - kConsumerWarpgroups * kConsumer;
    static_assert(kConsumerWarpgroups >= 2, "one warpgroup has the registers that it can use at launch");
    static_assert(kProducer >= 24 && kProducer <= kAtLaunch && kConsumer >= kAtLaunch && kConsumer <= 256,
        "setmaxnreg takes 24 to 256; a producer gives up registers, a consumer takes them");
};

// The registers of a thread that multiplies, in one of `blocks` blocks on a multiprocessor; kSplit: with RegisterSplit.
template <int kConsumerWarpgroups, bool kSplit> constexpr int consumer_registers(int threads, int blocks) {
    if constexpr (kSplit) return RegisterSplit<kConsumerWarpgroups>::kConsumer;
    const int registers = 65536 / (threads * blocks) / 8 * 8;
    return registers < 255 ? registers : 255;
}

// --- shared memory ---------------------------------------------------------------------------------------------------

// A multiprocessor's, and what a block may ask for: the system takes 1 KiB of each block.
constexpr int kSharedOfMultiprocessor = 228 << 10, kSharedOfSystem = 1 << 10;
constexpr int kSharedOfBlock = kSharedOfMultiprocessor - kSharedOfSystem;
constexpr int kTileAlignment = 1024;  // of a tile with the 128-byte swizzle

}  // namespace swin
