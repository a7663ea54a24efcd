// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs that run in the guest's kernel, and what the
// compiler made of them. record.h is the wire record in C, held against
// vsockproto by this package's test; kernel.h is what the programs touch of
// the kernel; maps.h is what they share with the agent. There are two objects:
// probe has the programs that an agent attaches before it has heard of any
// policy, further those of the hooks that a host has to ask for. Objects are committed:
// building the agent needs no C compiler, and `make check` compiles them again
// and fails if they come out otherwise.
//
// Loading and attaching is sensor's job. Nothing here refuses anything: every
// program reports and lets the kernel go on.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -Wall -Werror -mcpu=v3" -type agent_config -type counter -type frame_mark -type filter_set -type filter_key Probe probe.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -Wall -Werror -mcpu=v3" Further further.bpf.c
