// Package evidence keeps the record: every byte a guest sent and everything
// the monitor said or did about it, append-only, hash-chained and signed.
//
// A store is a directory with one stream (a directory named by a UUID) per VM,
// and the host's own under the zero UUID. A stream is a run of records, split
// into segments named by the index of their first record:
//
//	<store>/lock                                     held by the writing process
//	<store>/<uuid>/00000000000000000000.seg.zst      a sealed segment
//	<store>/<uuid>/00000000000000000000.idx          what it can be asked for by: see index.go
//	<store>/<uuid>/00000000000000104233.seg          a plain one; the last is appended to
//	<store>/<uuid>/00000000000000000000.rest.zst     what retention left of one: see remainder.go
//	<store>/<uuid>/00000000000000052117.gone         what was before was given up: see tombstone.go
//	<store>/<uuid>/00000000000000104233.4096.cut     bytes set aside by a recovery
//	<store>/<uuid>.corrupt-1/                        a stream that was set aside
//
// A plain segment is a header of 64 bytes and records:
//
//	 0       8        24      32                64
//	+-------+--------+-------+-----------------+----------
//	| magic | stream | first | chain before it | records …
//	+-------+--------+-------+-----------------+----------
//
//	magic   "OUTGEVD\x01"
//	stream  the UUID
//	first   u64, index of the first record
//	chain   h of the record before the first
//
// and a record is
//
//	 0        4      6       8       16     24        length-8  length
//	+--------+------+-------+-------+------+-----------+-------+
//	| length | kind | flags | index | time | payload … | check |
//	+--------+------+-------+-------+------+-----------+-------+
//
//	length  u32, the whole record in bytes
//	kind    u16, see Kind; numbers are never used again
//	flags   u16, bit 0: critical; the others are zero
//	index   u64, 0, 1, 2 … in the stream
//	time    i64, the host's clock, ns since 1970
//	payload the very bytes: a frame as received, or JSON
//	check   the first 8 bytes of this record's h
//
// All integers are little endian. The chain is
//
//	h(i)  = SHA-256( h(i-1) || record i without its check )
//	h(-1) = SHA-256( "outguard evidence v1\n" || stream )
//
// so that the check tells at once that a record was torn or rotted, and a
// signed head, which names h, that nothing before it was changed. A head is a
// record like others, of kind head. Its payload is a signed note
// (golang.org/x/mod/sumdb/note) of the host's key over
//
//	outguard evidence head v1
//	stream 6f1d7f5e-3c0a-4b0e-9a53-0d8a2b0f6c11
//	records 104233
//	durable 104000
//	chain 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	time 2026-11-23T16:59:00.123456789Z
//
// records is the number before the head, which is its own index; chain is h of
// the last of them; time is the record's own; of durable, the first so many
// were on disk when the head was signed.
//
// A sealed segment holds the same bytes as zstd frames, each a run of whole
// records, and ends in a skippable frame with where each begins and a signed
// note over all of it, so `zstd -d` gives the plain segment back. See
// sealed.go.
//
// What is exported of streams has a statement of what it is of: see statement.go.
//
// What an append was given has been handed to the kernel when it returns: a
// monitor that is killed loses nothing, but for what AppendUnchecked was given and
// Check was not called of. Sync makes it durable. A head that was
// the last thing in a stream, and everything after the head before it, can be
// cut off without a trace in this stream; who must know keeps heads elsewhere
// (each bundle holds one).
package evidence

// DefaultDir is where the monitor keeps its keys and, below "evidence", its
// store.
const DefaultDir = "/var/lib/outguard"

// Files in the state directory, DefaultDir or another.
const (
	KeyFile    = "host.key"
	PubFile    = "host.pub" // KeysFile beside it, once the key was rotated
	StoreDir   = "evidence"
	BundlesDir = "bundles"
)
