/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where kernels differ. Each test asks the running kernel's BTF whether a thing exists; none
 * compares versions. The verifier removes the branch that is not taken.
 */
#ifndef AGENTMON_COMPAT_H
#define AGENTMON_COMPAT_H

#include <linux/bpf.h>
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/*
 * bpf_rdonly_cast (Linux 6.2, a35b9af4ec2c) turns an address into a read-only typed pointer: plain
 * loads instead of helper calls, a third of the cost. Its id in this enum appears with the kfunc.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

enum special_kfunc_type___am {
	KF_bpf_rdonly_cast___am,
};

#define am_have_cast() \
	bpf_core_enum_value_exists(enum special_kfunc_type___am, KF_bpf_rdonly_cast___am)

#define am_cast(type, ptr) ((type *)bpf_rdonly_cast((ptr), bpf_core_type_id_kernel(type)))

/* Reads one field of an object known only by its address; a fault reads as zero. */
#define am_load(type, ptr, field)                                                  \
	({                                                                         \
		typeof(((type *)0)->field) __v;                                    \
		if (am_have_cast())                                                \
			__v = am_cast(type, (void *)(ptr))->field;                 \
		else                                                               \
			bpf_core_read(&__v, sizeof(__v), &((type *)(ptr))->field); \
		__v;                                                               \
	})

/* Linux 6.1 forgets the bounds of a 32-bit AND when the value is spilled: mask in 64 bits, opaquely to clang. */
#define am_bound(x, mask) asm volatile("%0 &= " #mask : "+r"(x))
#define am_mask(x, mask) asm volatile("%0 &= %1" : "+r"(x) : "r"(mask))
/*
 * x as it is, but all the verifier knows of it is that it is as large as `any`, of which it knows nothing: a counter
 * that grows in a callback of bpf_loop would be a new state each time.
 */
#define am_forget(x, any) asm volatile("%0 ^= %1; %0 ^= %1" : "+r"(x) : "r"(any))

#endif
