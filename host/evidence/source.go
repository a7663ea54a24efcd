package evidence

import (
	"errors"
	"io"
	"os"
)

// source gives a segment's plain bytes from some offset on. peek returns n
// bytes, valid until the next call, or fewer and io.EOF.
type source interface {
	peek(n int) ([]byte, error)
	advance(n int)
	io.Closer
}

// plainSource reads a plain segment, which may be growing.
type plainSource struct {
	f   *os.File
	off int64 // in the file, of the end of buf
	buf []byte
	mem []byte
	lot int // to read at once: more each time, up to readAhead
}

const readAhead = 256 << 10

func openPlain(path string) (*plainSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &plainSource{f: f}, nil
}

func (s *plainSource) peek(n int) ([]byte, error) {
	if len(s.buf) >= n {
		return s.buf[:n], nil
	}
	s.lot = min(max(2*s.lot, 4<<10), readAhead)
	if size := max(n, s.lot); len(s.mem) < size {
		mem := make([]byte, size)
		s.buf = mem[:copy(mem, s.buf)]
		s.mem = mem
	}
	kept := copy(s.mem, s.buf)
	got, err := s.f.ReadAt(s.mem[kept:], s.off)
	s.off += int64(got)
	s.buf = s.mem[:kept+got]
	if len(s.buf) >= n {
		return s.buf[:n], nil
	}
	short := s.buf
	s.off -= int64(len(short)) // read again: a writer may take back what did not fit
	s.buf = s.mem[:0]
	if err == nil || errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return short, err
}

func (s *plainSource) advance(n int) { s.buf = s.buf[n:] }
func (s *plainSource) Close() error  { return s.f.Close() }
