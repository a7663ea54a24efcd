// Package vsockproto is the wire protocol between a guest's agent and the host:
// pure Append and Parse functions, each pair the other's inverse. PROTOCOL.md
// beside this file draws every byte and is the specification; this package is
// its only implementation in Go.
//
// A connection carries frames. A frame is a 16-byte header and a payload:
//
//	 0        4      6   7   8                16
//	+--------+------+---+---+----------------+-----------
//	| length | type | v | 0 | frame sequence | payload …
//	+--------+------+---+---+----------------+-----------
//
// The payload of an Events frame is a count and then records exactly as the
// guest's kernel wrote them, in the layout of guest/bpf/record.h:
//
//	 0        4      6   7       8     12      16         24        32        160
//	+--------+------+---+-------+-----+-------+----------+---------+---------+------+-------
//	| length | type | v | class | cpu | flags | sequence | boot_ns | subject | body | tails
//	+--------+------+---+-------+-----+-------+----------+---------+---------+------+-------
//
// All integers are little endian, except ports and internet addresses, which
// keep network order. Everything is aligned to 8 bytes, padding and reserved
// bytes are zero, and whatever is not so is refused. Lengths are bounded before
// anything is allocated; on error every result is zero.
//
// The package imports the standard library only, and allocates only where a
// parsed frame holds a list.
package vsockproto
