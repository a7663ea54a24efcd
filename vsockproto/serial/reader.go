package serial

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrNoise: more came that was nobody's than an earlier process can have left.
var ErrNoise = errors.New("too much noise")

// maxNoise bounds what is passed over at a stretch. A virtio-serial queue and a
// socket hold less than 3 MiB.
const maxNoise = 8 << 20

// Counts are of what was passed over, since the stream was opened.
type Counts struct {
	Stale uint64 // packets of other processes than the two that speak
	Noise uint64 // bytes that belong to no packet, zeros not counted
}

// reader cuts a stream into packets, in one buffer, which holds one at most.
type reader struct {
	src        io.Reader
	buf        []byte
	start, end int // unread bytes
	noise      int // passed over since the last packet that was taken
	counts     Counts
}

// firstBuffer is enough for heartbeats; it grows to a packet's length.
const firstBuffer = 4 << 10

// next returns the next packet that is no data, or data of these two. The
// payload is valid until the next call. An error of src leaves everything so
// that it can be called again.
func (r *reader) next(guest, host uint64) (Header, []byte, error) {
	for {
		h, err := r.header()
		switch {
		case err != nil:
			return Header{}, nil, err
		case h.Type != Data:
			r.take(HeaderSize)
			return h, nil, nil
		case h.Guest != guest || h.Host != host:
			r.counts.Stale++
			r.noise += HeaderSize // its payload is gone through: who says how long it is may be anybody
			r.start += HeaderSize
			continue
		}
		if err := r.fill(HeaderSize + h.Length); err != nil {
			return Header{}, nil, err
		}
		payload := r.buf[r.start+HeaderSize : r.start+HeaderSize+h.Length]
		if crc32.Checksum(payload, castagnoli) != h.Sum {
			r.skip(1) // it was cut, and something else follows
			continue
		}
		r.take(HeaderSize + h.Length)
		return h, payload, nil
	}
}

func (r *reader) take(n int) {
	r.start += n
	r.noise = 0
}

// header finds the next header, and leaves it where it is.
func (r *reader) header() (Header, error) {
	for {
		if r.noise > maxNoise {
			return Header{}, fmt.Errorf("%d bytes: %w", r.noise, ErrNoise)
		}
		if err := r.fill(HeaderSize); err != nil {
			return Header{}, err
		}
		unread := r.buf[r.start:r.end]
		at := bytes.Index(unread, magic[:])
		switch {
		case at < 0:
			r.skip(len(unread) - len(magic) + 1)
		case at > 0:
			r.skip(at)
		default:
			if h, ok := parse(unread); ok {
				return h, nil
			}
			r.skip(1)
		}
	}
}

func (r *reader) skip(n int) {
	passed := r.buf[r.start : r.start+n]
	r.counts.Noise += uint64(n - bytes.Count(passed, []byte{0}))
	r.noise += n
	r.start += n
}

// fill reads until n bytes are there.
func (r *reader) fill(n int) error {
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	if n > len(r.buf)-r.start {
		into := r.buf
		if n > len(into) {
			into = make([]byte, max(n, firstBuffer))
		}
		r.end = copy(into, r.buf[r.start:r.end])
		r.start, r.buf = 0, into
	}
	for r.end-r.start < n {
		m, err := r.src.Read(r.buf[r.end:])
		r.end += m
		if r.end-r.start < n && err != nil {
			return err
		}
	}
	return nil
}
