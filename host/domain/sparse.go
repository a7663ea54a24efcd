package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	chunk      = 16 << 20 // what a worker takes at a time
	copyBuffer = 1 << 20
	maxCopiers = 2 // one reads while the other writes: of those only one can, into one file
)

// copyPieces copies pieces of the RAM's file into the core: data
// alone (SEEK_DATA), by reading, since a hole that is looked at through a mapping
// is a hole no more; and of that no page of zeros. done counts the bytes that are
// behind it.
func copyPieces(ctx context.Context, to, ram *os.File, all []piece, done *atomic.Uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan piece)
	var copiers sync.WaitGroup
	for range min(maxCopiers, runtime.GOMAXPROCS(0)) {
		copiers.Go(func() {
			buf := make([]byte, copyBuffer)
			for p := range work {
				if err := copyPiece(ctx, to, ram, p, buf); err != nil {
					cancel(err)
				}
				done.Add(p.size)
			}
		})
	}
	err := hand(ctx, work, ram, all, done)
	copiers.Wait()
	if err != nil {
		return fmt.Errorf("copy memory: %w", err)
	}
	return context.Cause(ctx)
}

// hand gives out the data of the pieces in chunks. It alone looks for it: from each
// chunk on the kernel would go through all of the data again, to find its end.
func hand(ctx context.Context, work chan<- piece, ram *os.File, all []piece, done *atomic.Uint64) error {
	defer close(work)
	for _, p := range all {
		for end := p.from + p.size; p.from < end; {
			data, hole, err := extent(ram, int64(p.from))
			if err != nil {
				return err
			}
			p.skip(min(uint64(data), end)-p.from, done)
			for stop := min(uint64(hole), end); p.from < stop; {
				part := p
				part.size = min(stop-p.from, chunk)
				select {
				case work <- part:
				case <-ctx.Done():
					return nil // copyPieces says why
				}
				p.skip(part.size, nil)
			}
		}
	}
	return nil
}

// skip takes n bytes off the beginning of a piece.
func (p *piece) skip(n uint64, done *atomic.Uint64) {
	p.from, p.to, p.size = p.from+n, p.to+int64(n), p.size-n
	if done != nil {
		done.Add(n)
	}
}

// copyPiece copies a piece that is all data.
func copyPiece(ctx context.Context, to, ram *os.File, p piece, buf []byte) error {
	for p.size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(copyBuffer-p.from%copyBuffer, p.size)] // aligned: the page cache has large folios
		if n, err := ram.ReadAt(b, int64(p.from)); n < len(b) {
			return fmt.Errorf("copy memory: read at %#x: %w", p.from+uint64(n), err)
		}
		if err := writeData(to, b, p.to); err != nil {
			return fmt.Errorf("copy memory: %w", err)
		}
		p.skip(uint64(len(b)), nil)
	}
	return nil
}

// extent is where data begins at or behind an offset, and where it ends; behind
// everything where there is none.
func extent(f *os.File, at int64) (data, hole int64, err error) {
	fd := int(f.Fd())
	data, err = unix.Seek(fd, at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // a hole to the end
		return math.MaxInt64, math.MaxInt64, nil
	}
	if err != nil {
		return 0, 0, err
	}
	hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err == nil && hole <= data {
		err = fmt.Errorf("data at %#x ends at %#x", data, hole)
	}
	return data, hole, err
}

var zeros [page]byte

// writeData writes the pages of b that are not all zero, neighbours at once.
func writeData(to io.WriterAt, b []byte, at int64) error {
	for i := 0; i < len(b); {
		next := min(i+page, len(b))
		if bytes.Equal(b[i:next], zeros[:next-i]) {
			i = next
			continue
		}
		for next < len(b) {
			more := min(next+page, len(b))
			if bytes.Equal(b[next:more], zeros[:more-next]) {
				break
			}
			next = more
		}
		if _, err := to.WriteAt(b[i:next], at+int64(i)); err != nil {
			return err
		}
		i = next
	}
	return nil
}
