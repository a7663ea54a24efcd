package quixote

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Lines reads lines as they are: nothing is trimmed but the newline.
type Lines struct {
	r    *bufio.Reader
	long []byte // a line that is longer than the buffer
	n    int
}

// NewLines reads from r.
func NewLines(r io.Reader) *Lines { return &Lines{r: bufio.NewReaderSize(r, 256<<10)} }

// Next returns the next line, valid until the next call, and io.EOF after the
// last one. A line over MaxLine comes cut to something longer than that.
func (l *Lines) Next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = l.rest(line)
	}
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("line %d: %w", l.n+1, err)
	}
	l.n++
	if n := len(line); line[n-1] == '\n' {
		line = line[:n-1]
	}
	return line, nil
}

func (l *Lines) rest(line []byte) ([]byte, error) {
	l.long = append(l.long[:0], line...)
	for {
		more, err := l.r.ReadSlice('\n')
		if len(l.long) <= MaxLine || err == nil {
			l.long = append(l.long, more...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return l.long, err
		}
	}
}

// Number is that of the last line, from 1.
func (l *Lines) Number() int { return l.n }

// Waits reports whether the next line has to be waited for.
func (l *Lines) Waits() bool { return l.r.Buffered() == 0 }
