// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const long = time.Minute // a wait that takes so long hangs

func testBell(t *testing.T) (b *bell, fd int) {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = newBell(fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fd)
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b, fd
}

func never() bool { return false }

func TestWaitEnds(t *testing.T) {
	tests := map[string]func(b *bell, fd int) func() bool{
		"when a ring wakes": func(b *bell, fd int) func() bool {
			unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			return never
		},
		"when it was rung": func(b *bell, fd int) func() bool {
			if err := b.ring(); err != nil {
				t.Error(err)
			}
			return never
		},
		"at once when there are records": func(b *bell, fd int) func() bool {
			return func() bool { return true }
		},
		// A record that wakes nobody comes right after the first look.
		"after a while when a record woke nobody": func(b *bell, fd int) func() bool {
			looks := 0
			return func() bool { looks++; return looks > 1 }
		},
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			b, fd := testBell(t)
			began := time.Now()
			if err := b.wait(long, set(b, fd)); err != nil {
				t.Fatal(err)
			}
			if time.Since(began) >= long {
				t.Error("the wait took all its time")
			}
		})
	}
}

func TestWaitTimesOut(t *testing.T) {
	b, _ := testBell(t)
	if err := b.wait(2*linger, never); err != nil {
		t.Fatal(err)
	}
	// A bell that was rung before is not rung for ever.
	if err := b.ring(); err != nil {
		t.Fatal(err)
	}
	if ready, err := b.poll(0); !ready || err != nil {
		t.Fatalf("poll = %v, %v", ready, err)
	}
	if ready, err := b.poll(0); ready || err != nil {
		t.Fatalf("poll again = %v, %v", ready, err)
	}
}
