package process

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a socket and the engine's end of it.
func pair(t *testing.T) (*socket, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := newSocket(fds[0]), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// An engine that takes nothing holds a write up until its deadline and no
// longer, and one that takes a little now and then does not put it off.
func TestSocketDeadline(t *testing.T) {
	ours, theirs := pair(t)
	message := make([]byte, 4<<20)
	if err := ours.write(message, time.Now().Add(20*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nobody reads: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- ours.write(message, time.Now().Add(50*time.Millisecond)) }()
	for {
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read in drops: %v", err)
			}
			return
		case <-time.After(time.Millisecond):
			if _, err := theirs.Read(make([]byte, 1<<10)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What the buffer has no room for waits for its reader.
func TestSocketWaitsForRoom(t *testing.T) {
	ours, theirs := pair(t)
	message := make([]byte, 4<<20)
	for i := range message {
		message[i] = byte(i >> 8)
	}
	got := make(chan []byte)
	go func() {
		b := make([]byte, len(message))
		_, _ = io.ReadFull(theirs, b) // what came is compared
		got <- b
	}()
	if err := ours.write(message, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if b := <-got; string(b) != string(message) {
		t.Error("other bytes came")
	}
}

// Close ends whoever reads and whoever writes.
func TestSocketClose(t *testing.T) {
	ours, _ := pair(t)
	read, wrote := make(chan error), make(chan error)
	go func() { _, err := ours.Read(make([]byte, 1)); read <- err }()
	go func() { wrote <- ours.write(make([]byte, 4<<20), time.Time{}) }()
	time.Sleep(10 * time.Millisecond) // both are likely to wait by then
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("read of a closed socket")
	}
	if err := <-wrote; err == nil {
		t.Error("write to a closed socket")
	}
	if err := ours.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed again: %v", err)
	}
	if err := ours.write([]byte("x"), time.Time{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("written to after it was closed: %v", err)
	}
}

func TestSocketAllocs(t *testing.T) {
	ours, theirs := pair(t)
	message, answer := make([]byte, 1<<10), make([]byte, 1<<10)
	deadline := time.Now().Add(time.Minute)
	if n := testing.AllocsPerRun(100, func() {
		if ours.write(message, deadline) != nil {
			t.Fatal("write")
		}
		if _, err := theirs.Read(answer); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
