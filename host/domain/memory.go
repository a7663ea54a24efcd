package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
)

// memory takes the guest's memory: from the RAM's file, where QEMU shares it by
// one that this process can open, else libvirt dumps it. The Snapshot's facts say
// which, and why.
func (k *taking) memory(ctx context.Context, s *Snapshot) error {
	path, err := k.file("memory.elf")
	if err != nil {
		return err
	}
	began, how := time.Now(), copiedMemory
	err = k.copyMemory(ctx, path)
	if err != nil && ctx.Err() == nil && !errors.Is(err, unix.ENOSPC) {
		how = dumpedFor(err.Error())
		k.c.log.Debug("memory is dumped, not copied", "vm", k.vm, "why", err)
		err = k.dumpMemory(ctx, path)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	f := File{Kind: "memory", Path: path, Format: "elf", Took: time.Since(began)}
	if f.Size, err = size(path); err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	s.Files, s.Facts = append(s.Files, f), append(s.Facts, Fact{"memory image", how})
	return nil
}

const copiedMemory = "copied from the file that is the guest's RAM"

func dumpedFor(why string) string { return "dumped by libvirt, it could not be copied: " + why }

// dumpMemory has libvirt dump the memory. The call returns when the dump is whole.
func (k *taking) dumpMemory(ctx context.Context, path string) error {
	err := k.during(ctx, "memory", nil, func() error { return k.dump(ctx, path) })
	if err != nil {
		return fmt.Errorf("dump memory: %w", err)
	}
	return nil
}

func (k *taking) dump(ctx context.Context, path string) error {
	return k.c.call(context.WithoutCancel(ctx), k.c.of(k.vm), func(l *libvirt.Libvirt) error {
		return l.DomainCoreDumpWithFormat(k.c.handle(k.vm), path, uint32(libvirt.DomainCoreDumpFormatRaw), libvirt.DumpMemoryOnly)
	})
}

// copyMemory writes a core with QEMU's own notes and ranges and the content of
// the RAM's file. On an error nothing remains of it.
func (k *taking) copyMemory(ctx context.Context, path string) (err error) {
	ram, n, err := openRAM(pidDir, k.def.Name, k.vm)
	if err != nil {
		return err
	}
	defer ram.Close()
	if n < 2*mebi || n%page != 0 {
		return fmt.Errorf("its RAM's file has %d bytes", n)
	}
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, to.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	return k.fill(ctx, to, ram, n)
}

// fill copies the RAM, which is most of the work, has libvirt say the rest
// meanwhile, and tells how far the first has come.
func (k *taking) fill(ctx context.Context, to, ram *os.File, n uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Uint64
	parts := ofRAM(n)
	total := parts[0].size + parts[1].size
	ended := make(chan error, 2)
	go func() { ended <- copyPieces(ctx, to, ram, parts, &done) }()
	go func() { ended <- k.around(ctx, to, ram, n) }()
	k.tell("memory", job{total: total})
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for left := 2; left > 0; {
		select {
		case err := <-ended:
			if left--; err != nil {
				cancel(err)
			}
		case <-tick.C:
			k.tell("memory", job{done: done.Load(), total: total})
		}
	}
	k.tell("memory", job{done: done.Load(), total: total})
	return context.Cause(ctx)
}

// around writes what is around the RAM in the core: its head, and the memory that
// is in no file.
func (k *taking) around(ctx context.Context, to, ram *os.File, n uint64) error {
	head, err := k.head(ctx)
	if err != nil {
		return fmt.Errorf("read what QEMU's dump begins with: %w", err)
	}
	m, err := mapMemory(head.loads, n)
	if err != nil {
		return err
	}
	if err := to.Truncate(m.size); err != nil { // what is copied meanwhile lies before
		return err
	}
	if _, err := to.WriteAt(head.layout(m.at), 0); err != nil {
		return err
	}
	if err := first(to, ram, head.loads); err != nil {
		return err
	}
	if err := k.sample(ctx, ram, piece{high, m.above, int64(m.low)}); err != nil {
		return err
	}
	return k.peekPieces(ctx, to, m.peeked)
}

// first writes what lies from 640 KiB to 1 MiB, and holds what QEMU's dump had
// beside it against the RAM's file.
func first(to, ram *os.File, loads []load) error {
	for _, l := range loads {
		for at := l.start; at < l.start+uint64(len(l.first)); at += page {
			b := l.first[at-l.start:]
			b = b[:min(page, len(b))]
			var err error
			if at >= legacy && at < mebi {
				err = writeData(to, b, ramAt+int64(at))
			} else {
				err = same(ram, b, at, at)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// same returns an error unless the RAM's file holds b, what the guest has at
// start.
func same(ram *os.File, b []byte, at, start uint64) error {
	var buf [page]byte
	if n, err := ram.ReadAt(buf[:len(b)], int64(at)); n < len(b) {
		return fmt.Errorf("read the RAM's file: %w", err)
	}
	if !bytes.Equal(b, buf[:len(b)]) {
		return fmt.Errorf("its RAM's file has at %#x other content than the guest at %#x", at, start)
	}
	return nil
}

// head has libvirt dump the memory into a pipe, and goes away when it has read
// what it begins with: QEMU's notes, its map of the guest's memory and the first
// of that. The dump ends there, as failed; it has changed nothing of the domain.
//
// libvirt opens the pipe below this process's /proc, so that there is none for it
// when the process is gone: whoever opens a pipe to write waits for one who reads,
// and libvirtd would do that for ever.
func (k *taking) head(ctx context.Context) (*coreHead, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	type result struct {
		head *coreHead
		err  error
	}
	read := make(chan result, 1)
	go func() {
		h, err := readHead(r)
		if err == nil {
			err = h.readFirst(r)
		}
		_ = r.Close()
		read <- result{h, err}
	}()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.Fd())
	dumped := k.during(ctx, "", nil, func() error { // fill tells how far the memory is
		defer r.Close() // not before libvirt has opened it
		err := k.dump(ctx, path)
		if errors.Is(err, ErrUnreachable) {
			return errors.Join(err, giveAway(w))
		}
		return errors.Join(err, w.Close())
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	got := <-read
	if errors.Is(got.err, os.ErrClosed) { // the dump ended before it
		return nil, errors.Join(errors.New("the dump came to nothing"), dumped)
	}
	return got.head, got.err
}

// givenAway are descriptors that a libvirtd which went away may open yet.
var givenAway struct {
	sync.Mutex
	all []*os.File
}

// giveAway has f's number lead to /dev/null for as long as this process lives. A
// libvirtd that has been told the number and has not answered may still come to open
// it, for writing and to be emptied: by then it would be any file of the monitor's.
func giveAway(f *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	givenAway.Lock()
	defer givenAway.Unlock()
	givenAway.all = append(givenAway.all, f)
	return unix.Dup3(int(null.Fd()), int(f.Fd()), unix.O_CLOEXEC)
}

// peekMost is how much libvirt hands out in one call.
const peekMost = 1 << 20

// peekPieces has libvirt read what is in no file.
func (k *taking) peekPieces(ctx context.Context, to *os.File, all []piece) error {
	for _, p := range all {
		for n := uint64(0); n < p.size; n += peekMost {
			b, err := k.peek(ctx, p.from+n, min(peekMost, p.size-n))
			if err == nil {
				err = writeData(to, b, p.to+int64(n))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *taking) peek(ctx context.Context, at, size uint64) (b []byte, err error) {
	err = k.c.call(ctx, k.c.of(k.vm), func(l *libvirt.Libvirt) (err error) {
		b, err = l.DomainMemoryPeek(k.c.handle(k.vm), at, uint32(size), libvirt.MemoryPhysical)
		return err
	})
	if err == nil && uint64(len(b)) != size {
		err = fmt.Errorf("%d bytes", len(b))
	}
	if err != nil {
		return nil, fmt.Errorf("read %d bytes of memory at %#x: %w", size, at, err)
	}
	return b, nil
}

// sample makes sure, by two pages that are not empty, that the RAM's file holds
// at to what the guest has at from: a call of libvirt's for each.
func (k *taking) sample(ctx context.Context, ram *os.File, p piece) error {
	last := int64(-1)
	for _, from := range []int64{p.to, p.to + int64(p.size/2)&^(page-1)} {
		at, err := someData(ram, from, p.to+int64(p.size))
		if err != nil {
			return err
		}
		if at < 0 || at == last {
			continue
		}
		last = at
		start := p.from + uint64(at-p.to)
		b, err := k.peek(ctx, start, page)
		if err == nil {
			err = same(ram, b, uint64(at), start)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// someData finds the first of a few pages from an offset on that is not all zero,
// -1 where there is none before end.
func someData(ram *os.File, at, end int64) (int64, error) {
	b := make([]byte, page)
	for range 256 {
		data, _, err := extent(ram, at)
		if err != nil || data > end-page {
			return -1, err
		}
		if _, err := ram.ReadAt(b, data); err != nil {
			return 0, err
		}
		if !bytes.Equal(b, zeros[:]) {
			return data, nil
		}
		at = data + page
	}
	return -1, nil
}
