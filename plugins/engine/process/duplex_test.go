package process

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// pair is a stream: this process's end, and where the engine reads and writes.
func pair(t *testing.T) (ours *duplex, batches, answers *os.File) {
	t.Helper()
	ours, theirs, err := newDuplex()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs[0].Close(); theirs[1].Close() })
	return ours, theirs[0], theirs[1]
}

// An engine that takes nothing holds a write up until its deadline and no
// longer, and one that takes a little now and then does not put it off.
func TestDuplexDeadline(t *testing.T) {
	ours, batches, _ := pair(t)
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
			if _, err := batches.Read(make([]byte, 1<<10)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What the buffer has no room for waits for its reader.
func TestDuplexWaitsForRoom(t *testing.T) {
	ours, batches, _ := pair(t)
	message := make([]byte, 4<<20)
	for i := range message {
		message[i] = byte(i >> 8)
	}
	got := make(chan []byte)
	go func() {
		b := make([]byte, len(message))
		_, _ = io.ReadFull(batches, b) // what came is compared
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
func TestDuplexClose(t *testing.T) {
	ours, _, _ := pair(t)
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

func TestDuplexAllocs(t *testing.T) {
	ours, batches, answers := pair(t)
	message, buf := make([]byte, 1<<10), make([]byte, 1<<10)
	deadline := time.Now().Add(time.Minute)
	if n := testing.AllocsPerRun(100, func() {
		err := ours.write(message, deadline)
		if err == nil {
			_, err = batches.Read(buf)
		}
		if err == nil {
			_, err = answers.Write(buf)
		}
		if err == nil {
			_, err = ours.Read(buf)
		}
		if err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
