// Package quixote reads and writes Quixote's text formats: the events that
// TSEM exports, one a line, and model files.
//
//	{"export": {"type": "event"}, "event": {…}, "COE": {…}, "file_open": {…}}
//
//	aggregate HEX
//	state HEX
//	seal
//	end
//
// Quixote's agents do not read JSON: they search text. Whatever bytes that
// accepts mean here what they mean there (Text); JSON itself is another dialect
// (Strict).
//
// What is exported has the fields of section 6.1, type by type as in
// testdata/fields.txt, and where a record does not tell one, it is left out: nothing
// is made up. So a regular file has no digest in file_fcntl and file_ioctl_compat, where
// no program may sleep to take it, in file_receive, whose receiver would wait for what the
// sender chose, and where it is open for writing or over 64 MiB; nor does a record of an
// agent of an earlier build have what that does not send.
// Numbers that are TSEM's own have another measure: tnum is when the thread began,
// ttd and p_ttd when the program did, all ns since boot, and context numbers the
// workload as tsem.Exported says.
//
// What Quixote's C leaves undefined is refused: a blank line or an unknown
// command in a model file, a base or an aggregate of fewer than 32 bytes, an
// event whose sock is broken (for which its parser returns a variable that it
// never set). Three values that it never sets and yet uses are zero: the port
// of an AF_INET6 address and of socket_accept, and the task number of an event
// without a pid.
//
// Source: the behaviour of Quixote lib/TSEMparser.c and SecurityModel/*.c, see
// SPEC sections 4 to 6.
package quixote
