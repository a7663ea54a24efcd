package vsockproto

import "fmt"

// Tag says what a tail holds. Numbers are never used again.
type Tag uint16

// Tags of records (below 64) and of frames.
const (
	TagPath     Tag = 1  // path of the file that the record is about
	TagArgv     Tag = 2  // argument strings, each ended by a NUL
	TagAddress  Tag = 3  // af_unix: sun_path as given; other families: the sockaddr's bytes
	TagFilename Tag = 4  // bprm->filename: what execve was asked for
	TagPath2    Tag = 5  // path of the second file
	TagName     Tag = 6  // of what the hook was asked for, see PROTOCOL.md
	TagValue    Tag = 7  // that belongs to the name
	TagCred     Tag = 8  // credentials other than the subject's, see Cred
	TagOwner    Tag = 9  // who made a System V object, a task
	TagReceiver Tag = 10 // who gets a message, a task

	TagKernel Tag = 64 // kernel release, as in uname -r
	TagBuild  Tag = 65 // agent build
	TagReason Tag = 66 // text for people
)

// Tail flags.
const (
	TailTruncated   uint16 = 1 << 0 // longer in the kernel than here
	TailUnlinked    uint16 = 1 << 1 // the name no longer leads to the file
	TailUnreachable uint16 = 1 << 2 // not below the task's root
	TailMade        uint16 = 1 << 3 // the file did not exist: the open made it
	TailForeign     uint16 = 1 << 4 // in the machine's mount namespace, and the task in another; unreachable as well
	tailFlags              = TailTruncated | TailUnlinked | TailUnreachable | TailMade | TailForeign
)

// Tail is variable-length data behind a fixed body:
//
//	 0     2       4        8
//	+-----+-------+--------+-------+--------------+
//	| tag | flags | length | bytes | zeros to 8·n |
//	+-----+-------+--------+-------+--------------+
//
// Length counts the bytes alone. After Parse, Data aliases the input.
type Tail struct {
	Flags uint16
	Data  []byte
}

const tailHeader = 8

func pad8(n int) int { return (n + 7) &^ 7 }

func appendTail(b []byte, tag Tag, t Tail) []byte {
	b = le.AppendUint16(b, uint16(tag))
	b = le.AppendUint16(b, t.Flags)
	b = le.AppendUint32(b, uint32(len(t.Data)))
	b = append(b, t.Data...)
	for n := len(t.Data); n%8 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

func parseTail(b []byte) (tag Tag, t Tail, rest []byte, err error) {
	if len(b) < tailHeader {
		return 0, Tail{}, nil, fmt.Errorf("tail header: %w", ErrShort)
	}
	tag = Tag(le.Uint16(b))
	flags := le.Uint16(b[2:])
	n := le.Uint32(b[4:])
	b = b[tailHeader:]
	if flags&^tailFlags != 0 {
		return 0, Tail{}, nil, fmt.Errorf("tail %d flags %#x: %w", tag, flags, ErrReserved)
	}
	if flags&TailForeign != 0 && flags&TailUnreachable == 0 {
		return 0, Tail{}, nil, fmt.Errorf("tail %d is foreign and not unreachable: %w", tag, ErrInvalid)
	}
	if uint64(n) > uint64(len(b)) || pad8(int(n)) > len(b) {
		return 0, Tail{}, nil, fmt.Errorf("tail %d of %d bytes: %w", tag, n, ErrShort)
	}
	for _, c := range b[n:pad8(int(n))] {
		if c != 0 {
			return 0, Tail{}, nil, fmt.Errorf("tail %d padding: %w", tag, ErrReserved)
		}
	}
	return tag, Tail{Flags: flags, Data: b[:n:n]}, b[pad8(int(n)):], nil
}
