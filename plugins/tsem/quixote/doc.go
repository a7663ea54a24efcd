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
