// Package soak runs one guest with a mixed load for a given time, injects
// faults at random, and holds what the monitor says against what was done: every
// fault that is a violation is found, nothing else is, every record is received
// or declared lost, and neither memory nor file descriptors grow.
//
//	load    opens, execs and threads in the guest, visits from outside
//	faults  faults.go: the agent killed or stopped, the channel stalled, the
//	        monitor killed or stopped, the engine killed, the guest paused, noise
//	        on the port, hooks made silent, a flood
//	judge   after each fault: heard again, nothing missing, the findings expected
//	table   report.go: what was injected, what was found, lost, and grown
//
// The order of faults is a function of the seed, which the table names.
package soak
