// Package respond carries out orders: it journals each one, synced to disk,
// before libvirt is called, carries it out, checks it by its effect, and
// journals the result.
//
//	Submit -> journal (synced) -> the VM's queue -> machine -> check -> result
//
// What a VM that is to be stopped waits for meanwhile is one sync, of the journal's
// write-ahead log; the journal's file follows with its next transaction, or within
// a second.
//
// The orders of one VM are carried out one after the other; those of several
// run side by side. What is only logged is settled by its journal entry. An alert
// has a queue of its VM and its target, beside the VM's own: it is tried until it
// is taken or its time is over, and holds up nothing. After a restart every order
// without a result is found again, held against what the VM is now, and given
// one.
package respond
