package link

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

// Frame is one frame as it was read. Raw and Payload are valid until the next
// frame is read.
type Frame struct {
	vsockproto.FrameHeader
	Raw     []byte // header included
	Payload []byte
}

// frameReader cuts a stream into frames, in one buffer that is used again. The
// buffer grows to the largest frame seen, and a frame's length is checked
// against the limit before it does. After a run of small frames it is small
// again: of thousands of sessions most send nothing but heartbeats.
type frameReader struct {
	src        io.Reader
	buf        []byte
	start, end int          // unread bytes
	at         time.Time    // when the last of them arrived
	unread     atomic.Int64 // end - start, for others than the reader
	small      int          // frames since one that a first buffer has no room for
	tap        func(b []byte, whole bool) error
}

const (
	firstBuffer = 4 << 10
	smallRun    = 64 // frames that a first buffer has room for
)

// next returns the next frame, at most limit bytes long. A stream that ends
// between frames is io.EOF, inside one io.ErrUnexpectedEOF. The tap has every
// byte first; of a frame that does not come to its end it has what came.
func (r *frameReader) next(limit int) (Frame, error) {
	h, err := r.header(limit)
	if err == nil {
		err = r.fill(int(h.Length))
	}
	if err != nil {
		return Frame{}, r.broken(err)
	}
	raw := r.buf[r.start : r.start+int(h.Length)]
	r.start += int(h.Length)
	r.unread.Store(int64(r.end - r.start))
	if r.small++; len(raw) > firstBuffer {
		r.small = 0
	}
	if r.tap != nil {
		if err := r.tap(raw, true); err != nil {
			return Frame{}, err
		}
	}
	return Frame{FrameHeader: h, Raw: raw, Payload: raw[vsockproto.FrameHeaderSize:]}, nil
}

func (r *frameReader) header(limit int) (vsockproto.FrameHeader, error) {
	if err := r.fill(vsockproto.FrameHeaderSize); err != nil {
		return vsockproto.FrameHeader{}, err
	}
	return vsockproto.ParseFrameHeader(r.buf[r.start:r.end], limit)
}

// waiting reports whether a whole frame is in the buffer already.
func (r *frameReader) waiting() bool {
	if r.end-r.start < vsockproto.FrameHeaderSize {
		return false // an error would cost an allocation
	}
	h, err := vsockproto.ParseFrameHeader(r.buf[r.start:r.end], vsockproto.MaxFrame)
	return err == nil && r.end-r.start >= int(h.Length)
}

// broken hands what is left of a frame to the tap, at most once.
func (r *frameReader) broken(err error) error {
	if r.tap != nil && r.start < r.end {
		if terr := r.tap(r.buf[r.start:r.end], false); terr != nil {
			err = errors.Join(err, terr)
		}
		r.start = r.end
	}
	return err
}

// fill reads until n bytes are there.
func (r *frameReader) fill(n int) error {
	r.makeRoom(n)
	for r.end-r.start < n {
		m, err := r.src.Read(r.buf[r.end:])
		r.end += m
		r.at = time.Now()
		r.unread.Store(int64(r.end - r.start))
		if r.end-r.start >= n {
			return nil
		}
		if errors.Is(err, io.EOF) && r.end > r.start {
			return io.ErrUnexpectedEOF
		}
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

func (r *frameReader) makeRoom(n int) {
	if r.start == r.end {
		r.start, r.end = 0, 0
		if r.small >= smallRun && len(r.buf) > firstBuffer {
			r.buf = nil
		}
	}
	if n <= len(r.buf)-r.start {
		return
	}
	into := r.buf
	if n > len(into) {
		size := max(len(into), firstBuffer)
		for size < n {
			size *= 2
		}
		into = make([]byte, size)
	}
	r.end = copy(into, r.buf[r.start:r.end])
	r.start, r.buf = 0, into
}
