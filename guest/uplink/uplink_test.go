// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

func TestRunCarriesEverythingAndSaysBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.src.put(1000)
		l.run(t, func() {
			time.Sleep(3 * time.Second)
			l.src.put(500) // in no heartbeat any more: Bye has the account
		})
		if err := <-l.served; err != nil {
			t.Errorf("the host says: %v", err)
		}
		l.account(t)
		if len(l.byes) != 1 || l.byes[0].Counters[0].Watermark != 1500 {
			t.Errorf("byes %+v", l.byes)
		}
	})
}

// TestHeartbeats: one at once, then one each interval that the host set.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{Heartbeat: 250 * time.Millisecond})
		began := time.Now()
		l.run(t, func() { time.Sleep(1100 * time.Millisecond) })
		var at []time.Duration
		for _, b := range l.beats {
			at = append(at, b.Sub(began))
		}
		want := []time.Duration{0, 250e6, 500e6, 750e6, 1000e6}
		if !slices.Equal(at, want) {
			t.Errorf("heartbeats at %v, want %v", at, want)
		}
	})
}

// TestReconnect: while the host is away records stay in the source; a frame
// that was under way comes again, and nothing comes twice.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.run(t, func() {
			l.src.put(300)
			time.Sleep(time.Second)
			l.setDown(true)
			synctest.Wait() // until the agent knows
			l.src.put(5000)
			time.Sleep(20 * time.Second)
			if left := l.src.left(); left != 5000 {
				t.Errorf("%d records left in the source, want 5000", left)
			}
			l.setDown(false)
			time.Sleep(10 * time.Second)
		})
		l.account(t)
		if l.policies.begun != 1 {
			t.Errorf("%d sessions begun, want 1: the second connection resumes", l.policies.begun)
		}
		if len(l.saved) != 2 || l.saved[0] != l.saved[1] {
			t.Errorf("saved %v", l.saved)
		}
	})
}

// TestSnapshotAfterLoss: what was lost of starts is made up for by one snapshot.
func TestSnapshotAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.run(t, func() {
			l.src.put(10)
			time.Sleep(3 * time.Second)
			if l.src.snapshots != 0 {
				t.Errorf("%d snapshots with nothing lost", l.src.snapshots)
			}
			l.src.mu.Lock()
			l.src.lost = 7
			l.src.mu.Unlock()
			time.Sleep(5 * time.Second)
		})
		if l.src.snapshots != 1 {
			t.Errorf("%d snapshots, want 1", l.src.snapshots)
		}
	})
}

// TestSnapshotThatTakesLong: signs of life, records and answers go on beside it, what is
// lost meanwhile has a snapshot of its own, and the end is not held up.
func TestSnapshotThatTakesLong(t *testing.T) {
	lose := func(s *source, lost uint64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lost = lost
	}
	for _, ends := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, prototest.HostOptions{})
			l.src.reading = make(chan struct{})
			l.run(t, func() {
				l.src.put(10)
				time.Sleep(time.Second)
				lose(l.src, 7)
				time.Sleep(5 * time.Second)
				lose(l.src, 8)
				l.src.put(10)
				time.Sleep(time.Minute)
				l.mu.Lock()
				beats := len(l.beats)
				l.mu.Unlock()
				if beats < 60 || l.received() != 20 {
					t.Errorf("%d heartbeats and %d records in a minute with a snapshot that hangs", beats, l.received())
				}
				l.src.mu.Lock()
				snapshots := l.src.snapshots
				l.src.mu.Unlock()
				if snapshots != 1 {
					t.Errorf("%d snapshots at a time", snapshots)
				}
				if ends {
					close(l.src.reading)
					time.Sleep(5 * time.Second)
				}
			})
			if want := map[bool]int{true: 2, false: 1}[ends]; l.src.snapshots != want || len(l.byes) != 1 {
				t.Errorf("%d snapshots, want %d, and %d byes", l.src.snapshots, want, len(l.byes))
			}
			if !ends {
				close(l.src.reading)
			}
		})
	}
}

// TestSnapshotThatFails is tried again after a while, and the agent goes on.
func TestSnapshotThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.src.fails = 2
		l.run(t, func() {
			l.src.put(10)
			time.Sleep(time.Second)
			l.src.mu.Lock()
			l.src.lost = 7
			l.src.mu.Unlock()
			time.Sleep(time.Minute)
		})
		if l.src.snapshots != 3 {
			t.Errorf("%d snapshots, want 3", l.src.snapshots)
		}
	})
}

// TestSnapshotForANewSession: a host that does not know the session any more
// gets a snapshot, one that goes on with it does not.
func TestSnapshotForANewSession(t *testing.T) {
	for _, stale := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, prototest.HostOptions{})
			l.uplink.stale = stale
			l.run(t, func() {
				time.Sleep(3 * time.Second)
				l.host.Break()
				time.Sleep(3 * time.Second)
			})
			if want := map[bool]int{false: 0, true: 1}[stale]; l.src.snapshots != want {
				t.Errorf("taken over %v: %d snapshots, want %d", stale, l.src.snapshots, want)
			}
		})
	}
}

func TestPolicyIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{Policy: &vsockproto.Policy{Number: 9}})
		l.run(t, func() { time.Sleep(time.Second) })
		if l.policies.number != 9 {
			t.Errorf("policy %d, want 9", l.policies.number)
		}
		if want := []vsockproto.PolicyAck{{Number: 9}}; !slices.Equal(l.acks, want) {
			t.Errorf("acks %+v, want %+v", l.acks, want)
		}
	})
}

// TestCanaryIsAnswered, and heartbeats have the kernel's own counts.
func TestCanaryIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.src.put(7)
		l.run(t, func() {
			time.Sleep(2 * time.Second)
			if err := l.host.SendCanary(&vsockproto.Canary{Nonce: [16]byte{1, 2}}); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second)
		})
		if len(l.sung) != 1 || l.sung[0].Nonce != [16]byte{1, 2} || l.sung[0].BootNs == 0 {
			t.Errorf("answers %+v", l.sung)
		}
		if l.totals.Starts != 7 || l.totals.MarkedNs == 0 {
			t.Errorf("totals %+v", l.totals)
		}
	})
}

// TestBulkIsWithheld: while the host wants no bulk it stays in the source, the
// heartbeats go on, and then it comes.
func TestBulkIsWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.host.Withhold(true)
		l.run(t, func() {
			time.Sleep(time.Second) // it is connected, and knows
			l.src.put(100)
			time.Sleep(5 * time.Second)
			l.mu.Lock()
			got, beats := l.events, len(l.beats)
			l.mu.Unlock()
			if got != 0 || beats < 4 {
				t.Errorf("%d records, %d heartbeats", got, beats)
			}
			l.host.Withhold(false)
			time.Sleep(3 * time.Second)
			if got := l.received(); got != 100 {
				t.Errorf("%d records of 100", got)
			}
		})
		l.account(t)
	})
}

// TestStoppedWhileWithheld: an end does not wait for what may not be sent.
func TestStoppedWhileWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.host.Withhold(true)
		l.run(t, func() {
			time.Sleep(time.Second) // it is connected, and knows
			l.src.put(100)
			time.Sleep(2 * time.Second)
		})
		if len(l.byes) != 1 || len(l.byes[0].Counters) != 0 || l.src.left() != 100 {
			t.Errorf("byes %+v, %d records left", l.byes, l.src.left())
		}
	})
}

// TestNoHost: an end without a host is no error, and takes no longer than Drain.
func TestNoHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.setDown(true)
		l.src.put(10)
		var stopped time.Time
		l.run(t, func() { time.Sleep(time.Minute); stopped = time.Now() })
		if took := time.Since(stopped); took != 5*time.Second {
			t.Errorf("Run ended %v after its context", took)
		}
		if left := l.src.left(); left != 10 {
			t.Errorf("%d records left in the source, want 10", left)
		}
	})
}

// TestStoppedAtOnce: what is in the kernel goes out all the same.
func TestStoppedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		l.src.put(10)
		l.run(t, func() {})
		l.account(t)
		if len(l.byes) != 1 {
			t.Errorf("byes %+v", l.byes)
		}
	})
}

func TestSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, prototest.HostOptions{})
		broken := errors.New("broken")
		l.src.err = broken
		l.src.put(1)
		if err := l.uplink.Run(t.Context()); !errors.Is(err, broken) {
			t.Errorf("Run: %v, want %v", err, broken)
		}
	})
}

// TestMoveDoesNotAllocate: a batch costs no memory on its way to the link.
func TestMoveDoesNotAllocate(t *testing.T) {
	l := newLab(t, prototest.HostOptions{Credit: 1 << 40})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	conn, err := l.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.uplink.Link.Run(ctx, conn, l.uplink.Hello(), handler{l.uplink}) }()
	l.src.put(1)
	one := l.src.records
	n := testing.AllocsPerRun(200, func() {
		l.src.mu.Lock()
		l.src.records = one
		l.src.mu.Unlock()
		if err := l.uplink.Link.Wait(ctx, minRoom); err != nil {
			t.Fatal(err)
		}
		if _, err := l.uplink.move(); err != nil {
			t.Fatal(err)
		}
	})
	stop()
	<-ended
	if n > 2 { // the host's end, in the same process, takes one for each of its acks
		t.Errorf("%v allocations for a batch", n)
	}
}
