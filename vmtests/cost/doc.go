// Package cost measures what the agent costs a guest, in instructions.
//
// The guest runs under QEMU's -icount, where a nanosecond of its time is one
// instruction of its only CPU: what is measured so repeats on a busy machine,
// and says nothing of caches. Each operation is done many times in rounds, and
// the round that took least counts. It is done with no agent and with each
// profile in one boot; the host's end is this process.
package cost
